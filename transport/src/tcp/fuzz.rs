//! Fuzz targets: the preface and plain frames as strangers send them.

use enjambre_core::transport::calls::Activity;
use futures::FutureExt;

use super::preface;
use super::reader::{FrameReader, PREFIX};
use crate::fuzz::Remote;
use crate::guard::cutoff::CutOff;
use crate::settings::TransportSettings;

const HEADER: usize = 300;
const PAYLOAD: usize = 9000;
/// How many bytes come at once, where it is not all of them.
const CHUNKS: [usize; 3] = [1, 7, usize::MAX];

/// The first bytes of a connection.
pub(crate) fn preface(data: &[u8]) {
    for chunk in CHUNKS {
        let mut remote = Remote::new(data, chunk);
        let greeted = preface::exchange(&mut remote).now_or_never().expect("its end is the end");
        let hears = std::mem::take(&mut remote.hears);
        assert_eq!(greeted.is_ok(), data.starts_with(&hears) && hears.len() == 8);
        assert!(greeted.is_err() || remote.says == &data[8..]);
    }
}

/// A header, and the payload where it was read and not passed over.
type Frames = Vec<(Vec<u8>, Vec<u8>)>;

/// Frames: what is read is what is there, however it is cut.
pub(crate) fn frames(data: &[u8]) {
    let expected = expected(data);
    for chunk in CHUNKS {
        let mut frames = Frames::new();
        let ended = read(data, chunk, &mut frames).now_or_never().expect("its end is the end");
        let ended = match ended {
            Ok(()) => End::Whole,
            Err(CutOff::Closed) => End::Cut,
            Err(CutOff::Limit { .. }) => End::Refused,
            Err(other) => panic!("{other}"),
        };
        assert_eq!((&frames, ended), (&expected.0, expected.1), "{chunk}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
    Refused,
}

/// Every second payload is read, and the others are passed over.
async fn read(data: &[u8], chunk: usize, frames: &mut Frames) -> Result<(), CutOff> {
    let settings = TransportSettings { header: HEADER, payload: PAYLOAD, ..TransportSettings::default() };
    let mut reader = FrameReader::new(Remote::new(data, chunk), Activity::default());
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
        let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX>() else { return (frames, End::Cut) };
        let [a, b, c, d, e, f, g, h] = prefix.map(usize::from);
        let [header, payload] =
            [[a, b, c, d], [e, f, g, h]].map(|[a, b, c, d]| a << 24 | b << 16 | c << 8 | d);
        if header > HEADER || payload > PAYLOAD {
            return (frames, End::Refused);
        }
        let Some((body, behind)) = behind.split_at_checked(header + payload) else {
            return (frames, End::Cut);
        };
        let (header, payload) = body.split_at(header);
        let payload = if frames.len().is_multiple_of(2) { payload } else { &[] };
        frames.push((header.to_vec(), payload.to_vec()));
        rest = behind;
    }
    (frames, End::Whole)
}
