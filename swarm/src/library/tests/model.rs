//! Random sequences of writes, syncs, crashes and removals, compared with a simple model.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// The pieces of a file that were written, and those that must survive a power cut.
#[derive(Default)]
struct Expected {
    written: Vec<bool>,
    durable: Vec<bool>,
}

/// The destination of new files.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Database,
    Files,
    Paths,
}

async fn run(seed: u64, to: To) {
    let rig = Rig::new(to == To::Files);
    let mut removals = 0;
    let mut random = StdRng::seed_from_u64(seed);
    let samples: Vec<Sample> = [0, 10, PIECE, 3 * PIECE + 1, 9 * PIECE]
        .iter()
        .zip(1..)
        .map(|(len, n)| Sample::new(*len, n))
        .collect();
    let mut model: BTreeMap<usize, Expected> = BTreeMap::new();
    let mut library = rig.open().await;
    for _ in 0..60 {
        let which = random.random_range(0..samples.len());
        let sample = &samples[which];
        match random.random_range(0..10) {
            0..5 => {
                let destination = match to {
                    // A linked file stays at its path after its removal from the library.
                    To::Paths => rig.to(&format!("{which}-{removals}"), false),
                    _ => Destination::Library,
                };
                let file = sample.create(&library, "x", destination).await;
                let count = sample.layout().count() as usize;
                let expected = model.entry(which).or_default();
                expected.written.resize(count, false);
                expected.durable.resize(count, false);
                let mut pieces = Vec::new();
                for number in 0..count {
                    if random.random_range(0..3) == 0 {
                        expected.written[number] = true;
                        pieces.push(sample.piece(number as u32));
                    }
                }
                file.write_pieces(pieces).await.unwrap();
                for number in 0..count {
                    // More pieces may be stored: the file already has its final name, but the index lost its
                    // bitmaps.
                    let has = file.has(sample.piece(number as u32).0);
                    assert!(has || !expected.written[number], "seed {seed}: a written piece is missing");
                    expected.written[number] = has;
                }
                if file.is_complete() {
                    file.finish(random.random()).await.unwrap();
                }
            }
            5..7 => {
                library.checkpoint_all().await.unwrap();
                for expected in model.values_mut() {
                    expected.durable.clone_from(&expected.written);
                }
            }
            7 => {
                if model.remove(&which).is_some() && library.entry(&sample.id()).is_some() {
                    library.remove(&sample.id()).await.unwrap();
                    removals += 1;
                }
            }
            8 => {
                // A kill loses nothing that was written.
                rig.kill(library).await;
                library = rig.open().await;
                for (which, expected) in &model {
                    let entry = library.entry(&samples[*which].id());
                    let have = entry.map_or(0, |entry| entry.have);
                    let written = expected.written.iter().filter(|written| **written).count();
                    assert_eq!(have as usize, written, "seed {seed}");
                }
            }
            _ => {
                // A power cut loses nothing that was synced, and nothing missing is claimed.
                rig.kill(library).await;
                rig.index.power_cut();
                rig.content.power_cut();
                library = rig.open().await;
                for (which, expected) in &mut model {
                    let sample = &samples[*which];
                    let file = library.open_file(&sample.id()).await.unwrap();
                    for number in 0..expected.written.len() {
                        let piece = sample.piece(number as u32).0;
                        let has = file.as_ref().is_some_and(|file| file.has(piece));
                        assert!(has || !expected.durable[number], "seed {seed}: a synced piece was lost");
                        assert!(
                            !has || expected.written[number],
                            "seed {seed}: a piece is claimed that was not written"
                        );
                        expected.written[number] = has;
                        expected.durable[number] = has;
                    }
                    if let Some(file) = file {
                        sample.check(&file).await;
                    }
                }
            }
        }
    }
    for entry in library.entries() {
        let report = library.verify(&entry.id).await.unwrap();
        assert!(report.bad.is_empty(), "seed {seed}");
    }
}

#[tokio::test]
async fn crashes_lose_no_synced_pieces_in_database() {
    for seed in 0..24 {
        run(seed, To::Database).await;
    }
}

#[tokio::test]
async fn crashes_lose_no_synced_pieces_in_files() {
    for seed in 100..112 {
        run(seed, To::Files).await;
    }
}

#[tokio::test]
async fn crashes_lose_no_synced_pieces_in_linked_files() {
    for seed in 200..216 {
        run(seed, To::Paths).await;
    }
}
