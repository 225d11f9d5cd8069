//! Changes to CBOR (RFC 8949) that leave it well formed.

use ciborium::Value;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::below;

/// Numbers at which something begins or ends: the heads of CBOR, sizes, counts, clocks.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    23,
    24,
    255,
    256,
    511,
    512,
    1000,
    65_535,
    65_536,
    262_144,
    1 << 22,
    (1 << 32) - 1,
    1 << 32,
    1 << 42,
    (1 << 42) + 1,
    (1 << 60) - 1,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
/// Lengths of bytes and texts.
const LENGTHS: [usize; 13] = [0, 1, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 300];
/// Texts that mean something somewhere.
const TEXTS: [&str; 12] = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "\0",
    "\u{1b}[31m",
    "é",
    "tcp://[::1]:1",
    "file",
    "0123456789abcdef",
];
/// No change goes deeper.
const DEEP: usize = 40;

/// The item that these bytes are.
pub(crate) fn read(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEEP).ok()?;
    rest.is_empty().then_some(value)
}

/// The bytes of an item.
pub(crate) fn write(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("values are written to memory without fail");
    bytes
}

/// One change somewhere in it.
pub(crate) fn change(value: &mut Value, others: &[Value], random: &mut SmallRng) {
    let at = below(random, size(value));
    let Some(node) = node(value, at) else { return };
    match random.random_range(0..10) {
        0 => *node = part_of(others, random),
        1 => *node = simple(random),
        2 => *node = wrapped(std::mem::replace(node, Value::Null), random),
        _ => within(node, others, random),
    }
}

/// How many items there are, this one among them. Keys of maps are items, too.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| size(key) + size(value)).sum(),
        Value::Tag(_, inner) => size(inner),
        _ => 0,
    }
}

/// The item of this number.
fn node(value: &mut Value, at: usize) -> Option<&mut Value> {
    if at == 0 {
        return Some(value);
    }
    let inner: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Map(entries) => entries.iter_mut().flat_map(|(key, value)| [key, value]).collect(),
        Value::Tag(_, inner) => vec![inner],
        _ => Vec::new(),
    };
    let mut left = at - 1;
    for item in inner {
        let here = size(item);
        if left < here {
            return node(item, left);
        }
        left -= here;
    }
    None
}

fn part_of(others: &[Value], random: &mut SmallRng) -> Value {
    let Some(mut other) = others.choose(random).cloned() else { return Value::Null };
    let at = below(random, size(&other));
    node(&mut other, at).map_or(Value::Null, |node| std::mem::replace(node, Value::Null))
}

fn number(random: &mut SmallRng) -> Value {
    let number = *NUMBERS.choose(random).unwrap_or(&0);
    if random.random_ratio(1, 8) {
        return Value::from(-(i128::from(number.min(i64::MAX as u64))));
    }
    Value::from(number)
}

fn simple(random: &mut SmallRng) -> Value {
    match random.random_range(0..9) {
        0 => Value::Null,
        1 => Value::Bool(random.random()),
        2 => Value::Array(Vec::new()),
        3 => Value::Map(Vec::new()),
        4 => Value::Bytes(vec![random.random(); *LENGTHS.choose(random).unwrap_or(&0)]),
        5 => Value::Text(TEXTS.choose(random).map_or_else(String::new, |text| (*text).to_owned())),
        6 => Value::Float(*[0.0, -1.5, f64::NAN, f64::INFINITY, 1e300].choose(random).unwrap_or(&0.0)),
        _ => number(random),
    }
}

fn wrapped(value: Value, random: &mut SmallRng) -> Value {
    match random.random_range(0..4) {
        0 => Value::Array(vec![value]),
        1 => Value::Map(vec![(simple(random), value)]),
        2 => Value::Tag(random.random_range(0..300), Box::new(value)),
        _ => (0..random.random_range(1..DEEP)).fold(value, |value, _| Value::Array(vec![value])),
    }
}

/// A change of its content.
fn within(value: &mut Value, others: &[Value], random: &mut SmallRng) {
    match value {
        Value::Integer(old) => {
            let near = i128::from(*old) + *[-1, 1, 256].choose(random).unwrap_or(&1);
            *value = match (random.random_range(0..4), u64::try_from(near)) {
                (0, Ok(near)) => Value::from(near),
                (1, _) => Value::from(random.random::<u64>() >> random.random_range(0..64)),
                _ => number(random),
            };
        }
        Value::Bytes(bytes) => match random.random_range(0..3) {
            0 => bytes.resize(*LENGTHS.choose(random).unwrap_or(&0), random.random()),
            1 if !bytes.is_empty() => {
                let at = below(random, bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            _ => bytes.iter_mut().for_each(|byte| *byte = random.random()),
        },
        Value::Text(text) => {
            let at =
                text.char_indices().map(|(at, _)| at).nth(below(random, text.len())).unwrap_or(text.len());
            match random.random_range(0..4) {
                0 => text.insert_str(at, TEXTS.choose(random).unwrap_or(&"x")),
                1 => text.truncate(at),
                2 => *text = TEXTS.choose(random).map_or_else(String::new, |text| (*text).to_owned()),
                _ => *text = text.repeat(random.random_range(2..20)),
            }
        }
        Value::Array(items) => list(items, |random| part_of(others, random), random),
        Value::Map(entries) => {
            list(entries, |random| (part_of(others, random), part_of(others, random)), random);
        }
        _ => *value = simple(random),
    }
}

/// Leaves out, repeats, exchanges or adds an element.
fn list<T: Clone>(items: &mut Vec<T>, new: impl Fn(&mut SmallRng) -> T, random: &mut SmallRng) {
    let (one, other) = (below(random, items.len()), below(random, items.len()));
    match random.random_range(0..6) {
        0 if !items.is_empty() => drop(items.remove(one)),
        1 if !items.is_empty() => items.insert(other, items[one].clone()),
        2 if !items.is_empty() => items.swap(one, other),
        3 if !items.is_empty() => items.truncate(one),
        4 if !items.is_empty() => {
            let many = vec![items[one].clone(); random.random_range(2..200)];
            items.splice(other..other, many);
        }
        _ => items.insert(one.min(items.len()), new(random)),
    }
}
