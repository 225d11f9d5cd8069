//! Fuzz targets for the preface and for length-prefixed frames.

use enjambre_core::Activity;
use futures::FutureExt;

use super::preface;
use super::reader::{FrameReader, PREFIX};
use crate::guard::disconnect::Disconnect;
use crate::scripted_remote::ScriptedRemote;
use crate::settings::TransportSettings;

const HEADER: usize = 300;
const PAYLOAD: usize = 9000;
/// The sizes of the chunks in which the input arrives.
const CHUNKS: [usize; 3] = [1, 7, usize::MAX];

/// The preface.
pub(crate) fn preface(data: &[u8]) {
    for chunk in CHUNKS {
        let mut remote = ScriptedRemote::new(data, chunk);
        let greeted =
            preface::exchange(&mut remote).now_or_never().expect("the end of the input ends the read");
        let received = std::mem::take(&mut remote.received);
        assert_eq!(greeted.is_ok(), data.starts_with(&received) && received.len() == 8);
        assert!(greeted.is_err() || remote.sends == &data[8..]);
    }
}

/// Headers and payloads. Skipped payloads are empty.
type Frames = Vec<(Vec<u8>, Vec<u8>)>;

/// Frames. The result does not depend on the chunk size.
pub(crate) fn frames(data: &[u8]) {
    let expected = expected(data);
    for chunk in CHUNKS {
        let mut frames = Frames::new();
        let ended =
            read(data, chunk, &mut frames).now_or_never().expect("the end of the input ends the read");
        let ended = match ended {
            Ok(()) => End::Complete,
            Err(Disconnect::Closed) => End::Truncated,
            Err(Disconnect::LimitExceeded { .. }) => End::Rejected,
            Err(other) => panic!("{other}"),
        };
        assert_eq!((&frames, ended), (&expected.0, expected.1), "{chunk}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Truncated,
    Rejected,
}

/// Reads every second payload, and skips the others.
async fn read(data: &[u8], chunk: usize, frames: &mut Frames) -> Result<(), Disconnect> {
    let settings = TransportSettings { header: HEADER, payload: PAYLOAD, ..TransportSettings::default() };
    let mut reader = FrameReader::new(ScriptedRemote::new(data, chunk), Activity::default());
    while let Some(lengths) = reader.next(&settings).await? {
        let header = reader.header(lengths.header).await?.to_vec();
        let mut payload = Vec::new();
        if frames.len().is_multiple_of(2) {
            payload = vec![0; lengths.payload];
            reader.exact(&mut payload).await?;
        } else {
            reader.skip(lengths.payload).await?;
        }
        frames.push((header, payload));
    }
    Ok(())
}

fn expected(data: &[u8]) -> (Frames, End) {
    let (mut rest, mut frames) = (data, Frames::new());
    while !rest.is_empty() {
        let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX>() else {
            return (frames, End::Truncated);
        };
        let [a, b, c, d, e, f, g, h] = prefix.map(usize::from);
        let [header, payload] =
            [[a, b, c, d], [e, f, g, h]].map(|[a, b, c, d]| a << 24 | b << 16 | c << 8 | d);
        if header > HEADER || payload > PAYLOAD {
            return (frames, End::Rejected);
        }
        let Some((body, behind)) = behind.split_at_checked(header + payload) else {
            return (frames, End::Truncated);
        };
        let (header, payload) = body.split_at(header);
        let payload = if frames.len().is_multiple_of(2) { payload } else { &[] };
        frames.push((header.to_vec(), payload.to_vec()));
        rest = behind;
    }
    (frames, End::Complete)
}
