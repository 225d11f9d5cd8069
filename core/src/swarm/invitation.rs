//! What lets a new peer in: one line that somebody sends to somebody else.
//!
//! It says which swarm it is (the authority's key), where its trackers are, and a secret of which the trackers know only
//! the hash. Whoever has the line can come in, so it is worth as much care as a password.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::model::endpoint::{Endpoint, MAX_ENDPOINT};
use crate::model::identity::PublicKey;

/// What every invitation begins with, and its version.
const NAME: &str = "enjambre";
const VERSION: &str = "1";
/// The most trackers in an invitation.
pub const MAX_TRACKERS: usize = 8;
/// The longest line that is looked at, in bytes.
const MAX_LINE: usize = 8192;
const CHECKSUM: usize = 4;
/// Of what the hash of a secret is derived, so that it is a hash of nothing else.
const CONTEXT: &str = "enjambre invitation secret 1";

/// 128 random bits that let somebody in. Shown by no formatter.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(#[serde(with = "serde_bytes")] [u8; 16]);

impl Secret {
    /// A secret from the random source of the thread.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// By what a tracker knows it again: its BLAKE3 hash in a context of its own.
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key(CONTEXT, &self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The hash of a secret, which is what an invitation is called: it lets nobody in. [`Display`](fmt::Display) gives all of its
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({})", hex::encode(&self.0[..4]))
    }
}

/// An invitation into a swarm. [`Display`](fmt::Display) gives the line with the secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The authority of the swarm.
    pub authority: PublicKey,
    /// What lets in.
    pub secret: Secret,
    /// Until when, in milliseconds since 1970-01-01 UTC.
    pub until: u64,
    /// Where the trackers are and who they are; one at least.
    pub trackers: Vec<Endpoint>,
}

/// Why a line is no invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseInvitationError {
    /// It is something else.
    #[error("this is no invitation; one is a single line that begins with \"enjambre1.\"")]
    NotOne,
    /// A newer program made it.
    #[error("this invitation is of a newer version of enjambre than this program")]
    Newer,
    /// It is not complete, or has other characters than it had.
    #[error("this invitation was cut or changed on its way; copy the whole line again")]
    Damaged,
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    blake3::Hasher::new().update(NAME.as_bytes()).update(body).finalize_xof().fill(&mut sum);
    sum
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = Vec::with_capacity(256);
        body.extend(self.authority.as_bytes());
        body.extend(self.secret.0);
        body.extend(self.until.to_be_bytes());
        for tracker in self.trackers.iter().take(MAX_TRACKERS) {
            let text = tracker.to_string();
            body.extend(u16::try_from(text.len()).map_err(|_| fmt::Error)?.to_be_bytes());
            body.extend(text.as_bytes());
        }
        f.write_str(&line_of(body))
    }
}

/// The line with this in it.
pub(super) fn line_of(mut body: Vec<u8>) -> String {
    body.extend(checksum(&body));
    format!("{NAME}{VERSION}.{}", URL_SAFE_NO_PAD.encode(body))
}

impl FromStr for Invitation {
    type Err = ParseInvitationError;

    fn from_str(line: &str) -> Result<Self, ParseInvitationError> {
        let line = line.trim();
        let rest = line.strip_prefix(NAME).filter(|_| line.len() <= MAX_LINE);
        let Some((version, text)) = rest.and_then(|rest| rest.split_once('.')) else {
            return Err(ParseInvitationError::NotOne);
        };
        match version {
            VERSION => {}
            _ if version.parse::<u16>().is_ok_and(|version| version > 1) => {
                return Err(ParseInvitationError::Newer);
            }
            _ => return Err(ParseInvitationError::NotOne),
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ParseInvitationError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(ParseInvitationError::Damaged)?;
        if checksum(body) != *sum {
            return Err(ParseInvitationError::Damaged);
        }
        read(body).ok_or(ParseInvitationError::Damaged)
    }
}

fn read(body: &[u8]) -> Option<Invitation> {
    let (authority, rest) = body.split_first_chunk::<32>()?;
    let (secret, rest) = rest.split_first_chunk::<16>()?;
    let (until, mut rest) = rest.split_first_chunk::<8>()?;
    let mut trackers = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_ENDPOINT || trackers.len() == MAX_TRACKERS {
            return None;
        }
        let (text, more) = more.split_at_checked(length)?;
        trackers.push(std::str::from_utf8(text).ok()?.parse().ok()?);
        rest = more;
    }
    if trackers.is_empty() || !rest.is_empty() {
        return None;
    }
    let (authority, until) = (PublicKey::from_bytes(*authority), u64::from_be_bytes(*until));
    Some(Invitation { authority, secret: Secret(*secret), until, trackers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invitation(trackers: &[&str]) -> Invitation {
        Invitation {
            authority: PublicKey::from_bytes([3; 32]),
            secret: Secret([9; 16]),
            until: 2_000_000_000_000,
            trackers: trackers.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn it_is_one_word_that_is_read_back_and_shows_its_secret_to_nobody_else() {
        let invitation = invitation(&["tcp://tracker.example.org:7700", "zmq://[::1]:7701"]);
        let line = invitation.to_string();
        assert!(line.starts_with("enjambre1.") && !line.contains(char::is_whitespace), "{line}");
        assert_eq!(format!("  {line}\n").parse(), Ok(invitation.clone()));
        assert!(!format!("{invitation:?}").contains("9, 9"));
        assert_ne!(invitation.secret.hash().0[..16], [9; 16]);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let line = invitation(&["tcp://t:1"]).to_string();
        let parse = |text: &str| text.parse::<Invitation>().unwrap_err();
        assert_eq!(parse(&line[..line.len() - 1]), ParseInvitationError::Damaged);
        assert_eq!(parse(&line.replace("enjambre1.", "enjambre2.")), ParseInvitationError::Newer);
        assert_eq!(parse("zmq://127.0.0.1:7700"), ParseInvitationError::NotOne);
        assert_eq!(parse(""), ParseInvitationError::NotOne);
        assert_eq!(parse(&invitation(&[]).to_string()), ParseInvitationError::Damaged, "nowhere to go");
    }

    proptest! {
        #[test]
        fn a_changed_character_is_noticed(at in any::<prop::sample::Index>(), to in "[a-zA-Z0-9_-]") {
            let line = invitation(&["tcp://tracker:7700"]).to_string();
            let at = 10 + at.index(line.len() - 10);
            let changed = format!("{}{to}{}", &line[..at], &line[at + 1..]);
            prop_assume!(changed != line);
            prop_assert!(changed.parse::<Invitation>().is_err());
        }

        #[test]
        fn any_line_is_read_or_refused(line in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(line.parse::<Invitation>().is_err());
            let _ = read(&bytes);
            let with_sum = [&bytes[..], &checksum(&bytes)].concat();
            let _ = format!("enjambre1.{}", URL_SAFE_NO_PAD.encode(with_sum)).parse::<Invitation>();
        }
    }
}
