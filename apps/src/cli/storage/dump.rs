//! `enjambre storage dump`: the records of the databases, one JSON object per line.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use enjambre_control::{Failure, ResultContext};
use enjambre_core::storage::inspect::{Field, Fields};
use enjambre_core::{Key, KeyRange, Space, UnixMillis};
use enjambre_swarm::catalogue::{self, layout};
use enjambre_swarm::library;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::databases::{self, Database, DatabaseKind, Databases};
use crate::cli::context::Context;
use crate::cli::number::whole_number;
use crate::cli::output::Stdout;

/// Number of entries per page.
const PAGE: usize = 500;
/// Maximum length of the shown part of a damaged value, in bytes.
const MAX_SHOWN: usize = 256;

/// Spaces with secrets that allow impersonation of a peer or the tracker.
const SECRET_SPACES: [Space; 4] = [layout::SESSIONS, layout::LEASES, layout::AUTHORITY, layout::INVITATIONS];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print only this space, with a name from `storage stats`
    #[arg(long, value_name = "NAME")]
    space: Option<String>,
    /// Maximum number of records
    #[arg(long, value_name = "N", value_parser = whole_number::<u64>(0..=u64::MAX))]
    limit: Option<u64>,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    databases::inspect(&context, async |databases| dump(databases, &arguments, &mut stdout).await).await?;
    stdout.finish()
}

async fn dump(databases: &Databases, arguments: &Arguments, stdout: &mut Stdout) -> Result<(), Failure> {
    let spaces = |database| Database::spaces(database).iter().map(move |space| (database, *space));
    let all: Vec<(&Database, Space)> = databases.all.iter().flat_map(spaces).collect();
    if let Some(wanted) = &arguments.space
        && !all.iter().any(|(_, space)| space.name() == wanted)
    {
        let known: Vec<&str> = all.iter().map(|(_, space)| space.name()).collect();
        return Err(Failure::usage(format!(
            "unknown space {wanted:?}; available spaces: {}",
            known.join(", ")
        )));
    }
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    for (database, space) in &all {
        if arguments.space.as_ref().is_some_and(|wanted| space.name() != wanted) {
            continue;
        }
        let mut range = KeyRange::all();
        loop {
            let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let page = database.storage.scan(*space, range.clone(), limit).await;
            let page = page.context(format!("cannot read the {} database", database.name))?;
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            left -= page.len() as u64;
            for (key, value) in &page {
                stdout.json(&describe(database.kind, *space, key, value));
            }
            if stdout.is_closed() {
                return Ok(());
            }
        }
    }
    Ok(())
}

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
            // The time of a damaged record can be out of range.
            Field::Time(time) => match UNIX_EPOCH.checked_add(Duration::from_millis(time.get())) {
                Some(at) if *time < UnixMillis::YEAR_10000 => {
                    serializer.collect_str(&humantime::format_rfc3339_millis(at))
                }
                _ => serializer.serialize_u64(time.get()),
            },
        }
    }
}

fn describe(kind: DatabaseKind, space: Space, key: &Key, value: &[u8]) -> Line {
    let described = match kind {
        DatabaseKind::Catalogue => catalogue::describe::describe(space, key.as_bytes(), value),
        DatabaseKind::Index | DatabaseKind::Content => library::describe::describe(space, key, value),
    };
    let fields = described.unwrap_or_else(|_| {
        // A damaged record can contain its secret.
        let hex = |bytes: &[u8]| Field::hex(&bytes[..bytes.len().min(MAX_SHOWN)]);
        let (key, shown) = match SECRET_SPACES.contains(&space) {
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
    fn damaged_record_is_shown_raw_without_secret() {
        let key = Key::new(vec![0xab; 16]).unwrap();
        let shown = |space, value: &[u8]| {
            serde_json::to_string(&describe(DatabaseKind::Catalogue, space, &key, value)).unwrap()
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
    fn time_out_of_range_is_shown_as_number() {
        let fields =
            |millis| Line { space: layout::META, fields: vec![("at", Field::Time(UnixMillis(millis)))] };
        let text = |millis| serde_json::to_string(&fields(millis)).unwrap();
        assert_eq!(text(0), r#"{"space":"meta","at":"1970-01-01T00:00:00.000Z"}"#);
        let last = UnixMillis::YEAR_10000.get();
        assert!(text(last - 1).contains("9999-12-31T23:59:59.999Z"));
        assert!(text(last).contains(&last.to_string()) && text(u64::MAX).contains(&u64::MAX.to_string()));
    }
}
