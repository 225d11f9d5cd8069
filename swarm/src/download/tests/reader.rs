//! Reads of files that are being downloaded.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::world::{Behavior, MIB, World};
use crate::download::error::DownloadError;
use crate::download::reader::FileReader;
use crate::download::settings::DownloadSettings;

#[tokio::test(start_paused = true)]
async fn reader_gets_wanted_part_first_and_then_the_rest() {
    let mut world = World::new(30 * MIB + 5);
    world.download = NonZeroU64::new(MIB as u64);
    world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let downloader = Arc::new(node.downloader);
    let middle = 20 * MIB as u64 + 7;
    let mut reader = FileReader::open(&downloader, world.request(), middle).await.unwrap();
    assert_eq!(reader.size(), 30 * MIB as u64 + 5);
    let content = reader.read(middle).await.unwrap();
    assert_eq!(content, world.content[middle as usize..][..content.len()]);
    let file = node.library.open_file(&world.manifest.id()).await.unwrap().unwrap();
    assert!(file.have_count() < 20, "{} pieces were requested before", file.have_count());
    let mut all = Vec::new();
    while let Ok(part) = reader.read(all.len() as u64).await
        && !part.is_empty()
    {
        all.extend_from_slice(&part);
    }
    assert!(all == world.content);
}

#[tokio::test(start_paused = true)]
async fn removal_of_file_ends_its_reader() {
    let mut world = World::new(30 * MIB);
    world.download = NonZeroU64::new(MIB as u64);
    world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let mut reader = FileReader::open(&Arc::new(node.downloader), world.request(), 0).await.unwrap();
    assert!(!reader.read(0).await.unwrap().is_empty());
    node.library.remove(&world.manifest.id()).await.unwrap();
    assert!(reader.read(20 * MIB as u64).await.is_err());
    assert!(node.library.entry(&world.manifest.id()).is_none(), "it is not downloaded again");
}

#[tokio::test(start_paused = true)]
async fn reader_of_file_without_providers_fails() {
    let world = World::new(MIB);
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let opened = FileReader::open(&Arc::new(node.downloader), world.request(), 0).await;
    assert!(matches!(opened.map(|_| ()).unwrap_err().as_ref(), DownloadError::NoProviders { .. }));
}
