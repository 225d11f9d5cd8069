use super::*;

#[test]
fn scratch_databases_are_beside_the_configured_paths() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("data/peer");
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("library.db"), "mine").unwrap();
    let scratch = Scratch::new(&home);
    scratch.create().unwrap();
    for path in [home.join("library.db"), disk.join("library.db"), home.join("../other.db")] {
        let database = scratch.database(&path);
        assert_eq!(database.file_name(), path.file_name());
        assert!(database.starts_with(path.parent().unwrap()) && database != path);
        std::fs::create_dir_all(database.parent().unwrap()).unwrap();
        std::fs::write(&database, "scratch").unwrap();
    }
    scratch.remove().unwrap();
    assert!(!folder.path().join("data").exists());
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(disk.join("library.db")).unwrap(), "mine");
}

#[test]
fn data_directory_in_use_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("data");
    let scratch = Scratch::new(&home);
    scratch.create().unwrap();
    std::fs::write(home.join("lock"), "").unwrap();
    scratch.remove().unwrap();
    assert!(home.join("lock").exists() && !scratch.data_dir().exists());
}

#[test]
fn failed_removal_is_retried() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("data");
    let scratch = Scratch::new(&home);
    scratch.create().unwrap();
    // A file instead of a directory makes the removal fail even for root.
    std::fs::remove_dir(scratch.data_dir()).unwrap();
    std::fs::write(scratch.data_dir(), "in the way").unwrap();
    scratch.remove().unwrap_err();
    std::fs::remove_file(scratch.data_dir()).unwrap();
    std::fs::create_dir(scratch.data_dir()).unwrap();
    std::fs::write(scratch.data_dir().join("library.db"), "scratch").unwrap();
    scratch.remove().unwrap();
    assert!(!home.exists());
}

#[test]
fn scratch_is_found_by_its_name_only() {
    let scratch = Scratch::new(Path::new("/data"));
    assert_eq!(Scratch::open(Path::new("/data"), scratch.name()), Some(scratch));
    for name in ["", "enjambre_scratch_", "enjambre_scratch_0123456789/.", "enjambre_catalogue"] {
        assert_eq!(Scratch::open(Path::new("/data"), name), None);
    }
}

#[test]
fn role_and_tenancy_determine_the_path() {
    let path = |tenancy, configured: Option<&str>, role| {
        Place::new("/data", tenancy).database(configured.map(Path::new), "db", role)
    };
    for (tenancy, configured, role, expected) in [
        (Tenancy::Shared, None, Role::Records, "/data/catalogue.db"),
        (Tenancy::Single, None, Role::Records, "/data/library.db"),
        (Tenancy::Single, Some("x.db"), Role::Content, "/data/x-content.db"),
        (Tenancy::Single, Some("/disk/x.db"), Role::Records, "/disk/x.db"),
        (Tenancy::PerFolder, Some("/disk/x.db"), Role::Records, "/disk/store/x.db"),
    ] {
        assert_eq!(path(tenancy, configured, role), Path::new(expected));
    }
}

#[test]
fn database_names_differ_by_role_tenancy_directory_and_scratch() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut names = BTreeSet::new();
    for role in [Role::Records, Role::Content] {
        let name = |place: &Place| place.database_name(Some("name"), role).unwrap();
        let shared = name(&Place::new(here.path(), Tenancy::Shared));
        assert_eq!(shared, name(&Place::new(here.path(), Tenancy::Single)), "the configured name");
        names.insert(shared);
        for folder in [&here, &there] {
            let place = Place::new(folder.path(), Tenancy::PerFolder);
            assert_eq!(name(&place), name(&place));
            names.insert(name(&place));
            names.insert(name(&Place::temporary(Scratch::new(folder.path()), Tenancy::Shared)));
        }
    }
    assert_eq!(names.len(), 10, "{names:?}");
    let default = |tenancy| Place::new(here.path(), tenancy).database_name(None, Role::Records).unwrap();
    assert_ne!(default(Tenancy::Shared), default(Tenancy::Single));
    for name in ["", "Upper", "pg_catalog", "a-b", "a23456789012345678901234567890123"] {
        let error = Place::new(here.path(), Tenancy::Shared).database_name(Some(name), Role::Records);
        assert!(matches!(error, Err(StorageError::Backend { .. })), "{name:?}: {error:?}");
    }
    std::fs::write(here.path().join("storage.id"), "damaged").unwrap();
    let error = Place::new(here.path(), Tenancy::PerFolder).database_name(None, Role::Records).unwrap_err();
    assert!(error.to_string().contains("storage.id"), "{error}");
}
