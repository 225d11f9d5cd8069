use super::*;
use crate::download::downloader::Downloader;
use crate::download::fixtures::StaticProviders;
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::Dialer;
use enjambre_core::storage::memory::Disk;

#[tokio::test]
async fn reply_whose_files_arrived_elsewhere_releases_its_budget() {
    let store = ContentStore::Database(Arc::new(Disk::new().open()));
    let library = Library::open(Arc::new(Disk::new().open()), store).await.unwrap();
    let (dialer, limit) = (Arc::new(Dialer::new(Vec::new())), Arc::new(BandwidthLimit::new(None)));
    let downloader = Downloader::new(library, dialer, limit, None, DownloadSettings::default());
    let context = &downloader.context;
    let [missing, arrived] = [1, 2].map(|byte| FileId::from_bytes([byte; 32]));
    let providers: Arc<dyn ProviderSource> = Arc::new(StaticProviders::default());
    let (progress, _) = watch::channel(Progress::default());
    let files = vec![SmallMember::new(missing, 1, Vec::new())];
    let mut batches = Batches::new(context, missing, files, None, providers, &progress);
    let before = context.budget.available_permits();
    for (id, released) in [(arrived, true), (missing, false)] {
        let permit = Arc::clone(&context.budget).acquire_many_owned(1).await.ok();
        let valid = vec![(SmallMember::new(id, 1, Vec::new()), Bytes::from_static(b"x"))];
        let hashed = HashedBatch { from: 0, valid, invalid: Vec::new(), permit };
        batches.on_event(Event::Hashed(Some(hashed))).unwrap();
        assert_eq!(context.budget.available_permits() == before, released);
    }
}
