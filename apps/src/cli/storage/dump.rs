//! `enjambre storage dump`: records as people read them, one JSON object a line.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use enjambre_core::catalogue::{self, layout};
use enjambre_core::library;
use enjambre_core::readable::{Field, Fields};
use enjambre_core::storage::value::{Key, KeyRange, Space};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::databases::{self, Database, Databases, Meaning};
use crate::cli::Context;
use crate::cli::output::Stdout;
use crate::failure::{Failure, Status};

/// How many entries are read at once.
const PAGE: usize = 500;
/// How much is shown of a value that cannot be read, in bytes.
const SHOWN: usize = 256;

/// What is in these lets others act in the name of a peer or of the tracker.
const SECRET: [Space; 4] = [layout::SESSIONS, layout::LEASES, layout::AUTHORITY, layout::INVITATIONS];

/// The year 9999 ends here, in milliseconds since 1970: RFC 3339 has no later time.
const LAST_TIME: u64 = 253_402_300_800_000;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this space, as `storage stats` names them
    #[arg(long, value_name = "NAME")]
    space: Option<String>,
    /// The most records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let data_dir = databases::own(&context.loaded).await?;
    let databases = Databases::open(context.registry, &context.loaded, data_dir.path(), false).await?;
    let mut stdout = Stdout::default();
    let dumping = dump(&databases, &arguments, &mut stdout);
    let dumped = context.stop.run_until_cancelled(dumping).await;
    databases.close().await?;
    dumped.unwrap_or_else(|| Err(Failure::failed("interrupted")))?;
    stdout.end()
}

async fn dump(databases: &Databases, arguments: &Arguments, stdout: &mut Stdout) -> Result<(), Failure> {
    let all = databases
        .all
        .iter()
        .flat_map(|database| database.spaces().iter().map(move |space| (database, *space)));
    let all: Vec<(&Database, Space)> = all.collect();
    if let Some(wanted) = &arguments.space
        && !all.iter().any(|(_, space)| space.name() == wanted)
    {
        let known: Vec<&str> = all.iter().map(|(_, space)| space.name()).collect();
        return Err(Failure::usage(format!("there is no space {wanted:?}; there are: {}", known.join(", "))));
    }
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    for (database, space) in &all {
        if arguments.space.as_ref().is_some_and(|wanted| space.name() != wanted) {
            continue;
        }
        let mut range = KeyRange::all();
        loop {
            let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let page = database.storage.scan(*space, range.clone(), limit).await.map_err(|error| {
                Failure::from_error(Status::Failed, &error)
                    .context(format!("the {} cannot be read", database.name))
            })?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            left -= page.len() as u64;
            for (key, value) in &page {
                stdout.json(&describe(database.meaning, *space, key, value));
            }
            if stdout.is_closed() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A record as one line says it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    space: Space,
    fields: Fields,
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.fields.len()))?;
        map.serialize_entry("space", self.space.name())?;
        for (name, field) in &self.fields {
            map.serialize_entry(name, &Shown(field))?;
        }
        map.end()
    }
}

struct Shown<'a>(&'a Field);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Field::Text(text) => serializer.serialize_str(text),
            Field::Number(number) => serializer.serialize_u64(*number),
            Field::Flag(flag) => serializer.serialize_bool(*flag),
            Field::List(list) => serializer.collect_seq(list.iter().map(Shown)),
            // A damaged time may be beyond every calendar.
            Field::Time(millis) => match UNIX_EPOCH.checked_add(Duration::from_millis(*millis)) {
                Some(time) if *millis < LAST_TIME => {
                    serializer.collect_str(&humantime::format_rfc3339_millis(time))
                }
                _ => serializer.serialize_u64(*millis),
            },
        }
    }
}

fn describe(meaning: Meaning, space: Space, key: &Key, value: &[u8]) -> Line {
    let described = match meaning {
        Meaning::Catalogue => catalogue::describe::describe(space, key.as_bytes(), value),
        Meaning::Index | Meaning::Content => library::describe::describe(space, key, value),
    };
    let fields = described.unwrap_or_else(|_| {
        // What cannot be read may have the secret in it all the same.
        let hex = |bytes: &[u8]| Field::hex(&bytes[..bytes.len().min(SHOWN)]);
        let (key, shown) = match SECRET.contains(&space) {
            true => (Field::secret(key.as_bytes()), Field::text("…")),
            false => (hex(key.as_bytes()), hex(value)),
        };
        vec![
            ("damaged", Field::Flag(true)),
            ("key", key),
            ("value", shown),
            ("length", Field::Number(value.len() as u64)),
        ]
    });
    Line { space, fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_is_shown_as_it_lies_and_keeps_its_secret() {
        let key = Key::new(vec![0xab; 16]).unwrap();
        let shown = |space, value: &[u8]| {
            serde_json::to_string(&describe(Meaning::Catalogue, space, &key, value)).unwrap()
        };
        let expected = format!(
            r#"{{"space":"files","damaged":true,"key":"{}","value":"0102","length":2}}"#,
            "ab".repeat(16)
        );
        assert_eq!(shown(layout::FILES, &[1, 2]), expected);
        for space in [layout::SESSIONS, layout::LEASES, layout::AUTHORITY, layout::INVITATIONS] {
            let text = shown(space, &[0xcd; 20]);
            assert!(
                text.contains("damaged") && !text.contains("ababababab") && !text.contains("cd"),
                "{text}"
            );
        }
        assert!(shown(layout::FILES, &[7; 100_000]).len() < 1000);
    }

    #[test]
    fn times_are_readable_as_far_as_there_are_such_times() {
        let fields = |millis| Line { space: layout::META, fields: vec![("at", Field::Time(millis))] };
        let text = |millis| serde_json::to_string(&fields(millis)).unwrap();
        assert_eq!(text(0), r#"{"space":"meta","at":"1970-01-01T00:00:00.000Z"}"#);
        assert!(text(LAST_TIME - 1).contains("9999-12-31T23:59:59.999Z"));
        assert!(
            text(LAST_TIME).contains(&LAST_TIME.to_string())
                && text(u64::MAX).contains(&u64::MAX.to_string())
        );
    }
}
