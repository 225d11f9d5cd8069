//! Invitations, with which new peers join a swarm. An invitation is a line of text.
//!
//! It contains the public key of the swarm's authority, the endpoints of the trackers, and a secret of which the trackers
//! store only the hash. Anyone with the line can join, so it must be treated like a password.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use enjambre_core::model::endpoint::MAX_ENDPOINT;
use enjambre_core::model::identity::PublicKey;
use enjambre_core::model::secret::Secret;
use enjambre_core::{Endpoint, UnixMillis};

/// The prefix of every invitation, followed by the version.
const NAME: &str = "enjambre";
const VERSION: &str = "1";
/// The maximum number of trackers in an invitation.
pub const MAX_TRACKERS: usize = 8;
/// The maximum length of a line in bytes.
const MAX_LINE: usize = 8192;
const CHECKSUM: usize = 4;

/// An invitation to a swarm. [`Display`](fmt::Display) returns the line, which contains the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The authority of the swarm.
    pub authority: PublicKey,
    /// The secret, which proves that the peer is invited.
    pub secret: Secret,
    /// The time of expiry.
    pub until: UnixMillis,
    /// The endpoints of the trackers with their ids; at least one.
    pub trackers: Vec<Endpoint>,
}

/// An error of parsing an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseInvitationError {
    /// The line has another format.
    #[error("not an invitation; an invitation is a single line that begins with \"enjambre1.\"")]
    NotAnInvitation,
    /// The format is newer than this program.
    #[error("the invitation requires a newer version of enjambre")]
    Newer,
    /// The line is incomplete or altered.
    #[error("the invitation is incomplete or altered; copy the whole line again")]
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
        body.extend(self.until.get().to_be_bytes());
        for tracker in self.trackers.iter().take(MAX_TRACKERS) {
            let text = tracker.to_string();
            body.extend(u16::try_from(text.len()).map_err(|_| fmt::Error)?.to_be_bytes());
            body.extend(text.as_bytes());
        }
        f.write_str(&line_of(body))
    }
}

/// Returns the line with this body.
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
            return Err(ParseInvitationError::NotAnInvitation);
        };
        match version {
            VERSION => {}
            _ if version.parse::<u16>().is_ok_and(|version| version > 1) => {
                return Err(ParseInvitationError::Newer);
            }
            _ => return Err(ParseInvitationError::NotAnInvitation),
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ParseInvitationError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(ParseInvitationError::Damaged)?;
        if checksum(body) != *sum {
            return Err(ParseInvitationError::Damaged);
        }
        decode(body).ok_or(ParseInvitationError::Damaged)
    }
}

fn decode(body: &[u8]) -> Option<Invitation> {
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
    let (authority, until) = (PublicKey::from_bytes(*authority), UnixMillis(u64::from_be_bytes(*until)));
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
            until: UnixMillis(2_000_000_000_000),
            trackers: trackers.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn line_round_trips_and_debug_hides_the_secret() {
        let invitation = invitation(&["tcp://tracker.example.org:7700", "zmq://[::1]:7701"]);
        let line = invitation.to_string();
        assert!(line.starts_with("enjambre1.") && !line.contains(char::is_whitespace), "{line}");
        assert_eq!(format!("  {line}\n").parse(), Ok(invitation.clone()));
        assert!(!format!("{invitation:?}").contains("9, 9"));
        assert_ne!(invitation.secret.hash().0[..16], [9; 16]);
    }

    #[test]
    fn invalid_line_reports_its_problem() {
        let line = invitation(&["tcp://t:1"]).to_string();
        let parse = |text: &str| text.parse::<Invitation>().unwrap_err();
        assert_eq!(parse(&line[..line.len() - 1]), ParseInvitationError::Damaged);
        assert_eq!(parse(&line.replace("enjambre1.", "enjambre2.")), ParseInvitationError::Newer);
        assert_eq!(parse("zmq://127.0.0.1:7700"), ParseInvitationError::NotAnInvitation);
        assert_eq!(parse(""), ParseInvitationError::NotAnInvitation);
        assert_eq!(parse(&invitation(&[]).to_string()), ParseInvitationError::Damaged, "without a tracker");
    }

    proptest! {
        #[test]
        fn altered_character_is_detected(at in any::<prop::sample::Index>(), to in "[a-zA-Z0-9_-]") {
            let line = invitation(&["tcp://tracker:7700"]).to_string();
            let at = 10 + at.index(line.len() - 10);
            let changed = format!("{}{to}{}", &line[..at], &line[at + 1..]);
            prop_assume!(changed != line);
            prop_assert!(changed.parse::<Invitation>().is_err());
        }

        #[test]
        fn any_line_is_parsed_or_rejected(line in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(line.parse::<Invitation>().is_err());
            let _ = decode(&bytes);
            let with_sum = [&bytes[..], &checksum(&bytes)].concat();
            let _ = format!("enjambre1.{}", URL_SAFE_NO_PAD.encode(with_sum)).parse::<Invitation>();
        }
    }
}
