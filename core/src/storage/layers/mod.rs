//! Wrappers: each is a [`super::Storage`] around another one, does one thing, and passes the conformance kit around
//! whatever it wraps.
//!
//! A configuration asks for them in `[storage.layers]`; none is there by default. From inside to outside they are
//! [`prefix`], [`patience`] and [`metrics`], so that what is measured is what callers meet, repeats included.

pub mod metrics;
pub mod patience;
pub mod prefix;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::metrics::MeteredStorage;
    use super::patience::{Patience, PatientStorage};
    use super::prefix::PrefixedStorage;
    use crate::storage::Storage;
    use crate::storage::conformance::{Builder, run_all};
    use crate::storage::error::StorageError;
    use crate::storage::memory::Disk;

    const PATIENCE: Patience = Patience { timeout: Some(Duration::from_secs(60)), retries: 3 };

    struct Wrapped(fn(Arc<dyn Storage>) -> Arc<dyn Storage>);

    impl Builder for Wrapped {
        type Place = Disk;

        fn place(&self) -> Disk {
            Disk::new()
        }

        async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
            Ok((self.0)(Arc::new(place.open())))
        }
    }

    #[tokio::test]
    async fn metrics_keep_the_obligations() {
        run_all(&Wrapped(|inner| Arc::new(MeteredStorage::new(inner, "test")))).await;
    }

    #[tokio::test]
    async fn patience_keeps_the_obligations() {
        run_all(&Wrapped(|inner| Arc::new(PatientStorage::new(inner, PATIENCE)))).await;
    }

    #[tokio::test]
    async fn a_prefix_keeps_the_obligations() {
        run_all(&Wrapped(|inner| Arc::new(PrefixedStorage::new(inner, "north".parse().unwrap())))).await;
    }
}
