//! Random operations and reopenings, compared with the in-memory storage.
//!
//! A failure contains its seed. The environment variable `ENJAMBRE_SEED` repeats it.

use std::ops::Bound;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::bench::{Bench, Violation, ensure};
use super::builder::Builder;
use enjambre_core::{Batch, Durability, Key, KeyRange, Memory, Space, Storage, StorageError};

const SPACES: [Space; 3] = [Space::new("a"), Space::new("ab"), Space::new("b")];
const STEPS: u32 = 600;

pub(super) async fn random_operations_match_memory_storage<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let seed = std::env::var("ENJAMBRE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random::<u64>());
    let mut random = StdRng::seed_from_u64(seed);
    let reference = Memory::new();
    for step in 0..STEPS {
        one_step(bench, &reference, &mut random).await.map_err(|Violation(violation)| {
            Violation(format!("{violation} (ENJAMBRE_SEED={seed}, step {step})"))
        })?;
    }
    bench.reopen().await?;
    for space in SPACES {
        let found = bench.probe.entries(space, KeyRange::all(), 64).await?;
        let expected = reference.scan(space, KeyRange::all(), usize::MAX).await?;
        ensure!(found == expected, "a space differs from the reference at the end (ENJAMBRE_SEED={seed})");
    }
    Ok(())
}

async fn one_step<B: Builder>(
    bench: &mut Bench<'_, B>,
    reference: &Memory,
    random: &mut StdRng,
) -> Result<(), Violation> {
    let space = SPACES[random.random_range(0..SPACES.len())];
    match random.random_range(0..100) {
        0..50 => {
            let batch = random_batch(reference, random).await?;
            let durability =
                if random.random_bool(0.05) { Durability::Durable } else { Durability::Buffered };
            let expected = reference.commit(batch.clone(), durability).await;
            let outcome = bench.probe.commit(batch, durability).await;
            let same = matches!(
                (&expected, &outcome),
                (Ok(()), Ok(())) | (Err(StorageError::Conflict), Err(StorageError::Conflict))
            );
            ensure!(same, "a commit differs from the reference: expected {expected:?}, found {outcome:?}");
        }
        50..75 => {
            let keys: Vec<Key> = (0..random.random_range(0..5)).map(|_| random_key(random)).collect();
            let (expected, found) =
                (reference.get(space, &keys).await?, bench.probe.get(space, &keys).await?);
            ensure!(found == expected, "a get of {keys:?} differs from the reference: expected {expected:?}");
        }
        75..97 => {
            let range = KeyRange { start: random_bound(random), end: random_bound(random) };
            let limit = random.random_range(0..20);
            let expected = reference.scan(space, range.clone(), limit).await?;
            let found = bench.probe.scan(space, range.clone(), limit).await?;
            // A page may also end at its limit of bytes.
            let bytes = |(key, value): &(Key, Bytes)| key.as_bytes().len() + value.len();
            let page: usize = found.iter().chain(expected.get(found.len())).map(bytes).sum();
            let is_full = !found.is_empty() && page > bench.probe.limits().max_page_bytes;
            ensure!(
                found == expected || (is_full && expected.starts_with(&found)),
                "a scan of {range:?} differs from the reference: expected {expected:?}"
            );
        }
        97 => bench.probe.sync().await?,
        98 => bench.reopen().await?,
        _ => bench.drop_and_open().await?,
    }
    Ok(())
}

/// Returns a key from a small set, so that operations collide.
fn random_key(random: &mut StdRng) -> Key {
    let len = random.random_range(1..4);
    let bytes: Vec<u8> = (0..len).map(|_| [0, b'a', 0x80, 0xff][random.random_range(0..4)]).collect();
    Key::new(bytes).expect("1 to 3 bytes")
}

fn random_value(random: &mut StdRng) -> Bytes {
    let len = match random.random_range(0..20) {
        0 => random.random_range(0..20_000),
        1..3 => 0,
        _ => random.random_range(1..40),
    };
    vec![random.random::<u8>(); len].into()
}

fn random_bound(random: &mut StdRng) -> Bound<Bytes> {
    match random.random_range(0..4) {
        0 => Bound::Unbounded,
        1 => Bound::Included(random_key(random).into_bytes()),
        2 => Bound::Excluded(random_key(random).into_bytes()),
        _ => Bound::Included(Bytes::new()),
    }
}

async fn random_batch(reference: &Memory, random: &mut StdRng) -> Result<Batch, Violation> {
    let mut batch = Batch::new();
    for _ in 0..random.random_range(0..8) {
        let (space, key) = (SPACES[random.random_range(0..SPACES.len())], random_key(random));
        if random.random_bool(0.7) {
            batch.put(space, key, random_value(random));
        } else {
            batch.delete(space, key);
        }
    }
    for _ in 0..random.random_range(0..3) {
        let (space, key) = (SPACES[random.random_range(0..SPACES.len())], random_key(random));
        let stored = reference.get(space, std::slice::from_ref(&key)).await?.remove(0);
        match stored {
            // Usually true, so that most batches are applied.
            Some(value) if random.random_bool(0.9) => batch.require(space, key, value),
            None if random.random_bool(0.2) => batch.require(space, key, random_value(random)),
            _ => batch.require_absent(space, key),
        };
    }
    Ok(batch)
}
