//! Directories of many small files are published, downloaded, changed and downloaded again.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use enjambre_tests::content::{is_executable, make_executable, read_tree, write_file, write_tree};
use enjambre_tests::node::World;
use enjambre_tests::setup::Setup;
use enjambre_tests::wait::TIMEOUT;

/// Writes hundreds of small files in nested directories, and some files of other kinds.
fn write_many_files(root: &Path) {
    write_tree(root, 1000);
    for number in 0..500_u64 {
        let path = root.join(format!("many/{}/{}/file-{number}.txt", number % 7, number % 3));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_file(&path, number * 37 % 20_000, number);
    }
}

fn args<'a>(first: &[&'a str], path: &'a Path) -> Vec<&'a OsStr> {
    first.iter().map(|arg| OsStr::new(*arg)).chain([path.as_os_str()]).collect()
}

#[test]
fn directory_of_small_files_is_downloaded_and_updated() {
    for content in ["database", "files"] {
        let world = World::new(Setup { content, ..Setup::default() });
        let folder = world.path("folder");
        write_many_files(&folder);
        let tree = read_tree(&folder);
        let tracker = world.tracker("tracker");
        let a = world.running_peer("a", &[&tracker]);
        a.publish(&folder, &[]);
        let listed = a.in_library("folder").unwrap();
        assert_eq!(
            (&listed["content"], &listed["path"]),
            (&"linked".into(), &folder.to_str().unwrap().into())
        );
        assert_eq!(a.run(["status", "--json"]).ok().json()[0]["files"], 1);
        let verified = a.run(["verify"]).ok().stdout;
        assert!(verified.contains("\nfolder/many/0/0/file-0.txt  "), "{verified}");

        // Without a daemon, twice: the second time the output is already complete.
        let b = world.peer("b", &[&tracker]);
        let out = world.path("out");
        for _ in 0..2 {
            b.run(args(&["get", "folder", "-o"], &out)).ok();
            assert!(read_tree(&out) == tree, "the downloaded directory differs");
        }
        // Into the library of a daemon, which later serves the directory without the publisher.
        let c = world.running_peer("c", &[&tracker]);
        c.run(["get", "folder"]).ok();

        // One file is changed, one is added and one is removed.
        fs::write(folder.join("many/0/0/file-0.txt"), "changed").unwrap();
        fs::write(folder.join("many/new.txt"), "new").unwrap();
        fs::remove_file(folder.join("many/1/1/file-1.txt")).unwrap();
        let sent = a.sent();
        a.publish(&folder, &[]);
        let changed = read_tree(&folder);
        c.run(["get", "folder"]).ok();
        assert!(a.sent() - sent < 200_000, "unchanged files were sent again");
        let refused = b.run(args(&["get", "folder", "-o"], &out));
        assert!(refused.status != Some(0), "a changed output file must be an error");
        b.run(args(&["get", "folder", "--force", "-o"], &out)).ok();
        fs::remove_file(out.join("many/1/1/file-1.txt")).unwrap();
        assert!(read_tree(&out) == changed, "the changed directory differs");
        drop(a);
        let d = world.peer("d", &[&tracker]);
        let again = world.path("again");
        d.run(args(&["get", "folder", "-o"], &again)).ok();
        assert!(read_tree(&again) == changed, "the directory downloaded from C differs");
    }
}

#[test]
fn directory_is_written_into_a_path_with_a_final_slash() {
    let world = World::default();
    let folder = world.path("folder");
    write_tree(&folder, 10);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let b = world.peer("b", &[&tracker]);
    let existing = world.path("existing");
    fs::create_dir(&existing).unwrap();
    fs::write(existing.join("mine"), "").unwrap();
    let into = existing.join("");
    // The second time the directory is already complete.
    for _ in 0..2 {
        b.run(args(&["get", "folder", "-o"], &into)).ok();
        assert!(read_tree(&existing.join("folder")) == read_tree(&folder));
    }
    assert_eq!(fs::read_dir(&existing).unwrap().count(), 2);
    let exported = world.path("new/exported/");
    a.run(args(&["export", "folder", "-o"], &exported)).ok();
    assert!(read_tree(&exported.join("folder")) == read_tree(&folder));
}

#[test]
fn interrupted_directory_download_resumes() {
    let world = World::default();
    let folder = world.path("folder");
    write_many_files(&folder);
    let tree = read_tree(&folder);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let mut b = world.peer("b", &[&tracker]);
    let out = world.path("out");
    for (limit, at_least) in [("2MB/s", 1), ("4MB/s", 3_000_000), ("6MB/s", 5_000_000)] {
        b.set(&format!("limits.download=\"{limit}\""));
        let mut get = b.spawn(args(&["get", "folder", "--json", "-o"], &out));
        get.wait_event(|event| event["done"].as_u64().filter(|done| *done >= at_least));
        get.kill();
    }
    b.set("limits.download=unlimited");
    b.run(args(&["get", "folder", "-o"], &out)).ok();
    assert!(read_tree(&out) == tree, "the downloaded directory differs");
}

#[test]
fn part_of_directory_is_listed_and_downloaded() {
    let world = World::default();
    let folder = world.path("folder");
    write_many_files(&folder);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let b = world.peer("b", &[&tracker]);
    let list = |query: &str| {
        let output = b.run(["get", "--list", "--json", query]).ok();
        let paths = output.json().into_iter().map(|line| line["path"].as_str().unwrap().to_owned());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(list("folder"), read_tree(&folder).into_keys().collect::<Vec<_>>());
    let inside = list("folder/many/0/");
    assert!(inside.len() > 50 && inside.iter().all(|path| path.starts_with("many/0/")));

    let (out, sub) = (world.path("file.txt"), world.path("sub"));
    b.run(args(&["get", "folder/many/0/0/file-0.txt", "-o"], &out)).ok();
    assert_eq!(fs::read(&out).unwrap(), fs::read(folder.join("many/0/0/file-0.txt")).unwrap());
    let got = b.run(args(&["get", "folder/many/0", "-o"], &sub)).ok().stdout;
    assert!(got.starts_with("folder/many/0: "), "{got}");
    assert!(read_tree(&sub) == read_tree(&folder.join("many/0")), "the subdirectory differs");
    b.run(["get", "folder/many/0/0/file-0.txt"]).ok();
    b.run(["get", "folder/many/missing"]).expect_status(3);
    b.run(["get", "--list", "folder/missing"]).expect_status(3);
    b.run(["get", "folder/../x"]).expect_status(2);
}

#[test]
fn executable_file_stays_executable() {
    let world = World::default();
    let folder = world.path("folder");
    write_tree(&folder, 1);
    let tool = world.path("tool");
    fs::write(&tool, "#!/bin/sh\n").unwrap();
    make_executable(&tool);
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&tool, &[]);
    a.publish(&folder, &[]);
    assert_eq!(a.listed("tool").unwrap()["kind"], "executable");
    let b = world.peer("b", &[&tracker]);
    // Downloads of files that the library does not have, and copies of files that it has.
    for round in 0..2 {
        for (query, executable) in [("tool", true), ("folder/bin/tool.sh", true), ("folder/notes.txt", false)]
        {
            let copy = world.path(format!("{}-{round}", query.replace('/', "-")));
            b.run(args(&["get", query, "-o"], &copy)).ok();
            assert_eq!(is_executable(&copy), executable, "{}", copy.display());
        }
    }
    // From the library, which has the content as a member of the directory first.
    let c = world.peer("c", &[&tracker]);
    c.run(["get", "folder"]).ok();
    c.run(["get", "folder/bin/tool.sh"]).ok();
    let copy = world.path("exported");
    c.run(args(&["export", "tool.sh", "-o"], &copy)).ok();
    assert!(is_executable(&copy));
}

#[test]
fn shared_member_counts_for_every_directory() {
    let world = World::default();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    let folders = ["one", "two"];
    let member = |folder: &str| world.path(folder).join("shared");
    for folder in folders {
        fs::create_dir(world.path(folder)).unwrap();
        fs::write(member(folder), "shared").unwrap();
        fs::write(world.path(folder).join("other"), folder).unwrap();
        a.publish(&world.path(folder), &[]);
    }
    let wait_providers = |wanted| folders.map(|folder| a.wait_providers(folder, wanted, TIMEOUT));
    wait_providers(1);
    for folder in folders {
        fs::rename(member(folder), world.path(format!("{folder}-shared"))).unwrap();
    }
    a.run(["verify"]).expect_status(1);
    wait_providers(0);
    for folder in folders {
        fs::rename(world.path(format!("{folder}-shared")), member(folder)).unwrap();
    }
    wait_providers(1);
}

#[test]
fn verification_of_a_name_fails_if_content_is_missing() {
    let world = World::default();
    let folder = world.path("folder");
    let absent: Vec<_> = (0..8).map(|number| format!("two/{number}")).collect();
    for path in absent.iter().map(String::as_str).chain(["one/file"]) {
        fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        fs::write(folder.join(path), path).unwrap();
    }
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let b = world.peer("b", &[&tracker]);
    b.run(["get", "folder/one"]).ok();
    let (all, failed) = (b.run(["verify"]).ok(), b.run(["verify", "folder"]).expect_status(1));
    for stdout in [all.stdout, failed.stdout] {
        assert!(stdout.contains("folder/one/file") && stdout.contains(": valid, 1 piece\n"), "{stdout}");
        let missing = stdout.lines().filter_map(|line| line.strip_suffix(": not stored, 1 piece missing"));
        let (mut names, ids): (Vec<_>, Vec<_>) = missing.filter_map(|line| line.split_once("  ")).unzip();
        assert!(ids.is_sorted(), "{stdout}");
        names.sort_unstable();
        assert_eq!(names, absent.iter().map(|path| format!("folder/{path}")).collect::<Vec<_>>());
    }
    assert!(failed.stderr.starts_with("error: incomplete files: 8; "), "{}", failed.stderr);
    b.run(["get", "folder"]).ok();
    b.run(["verify", "folder"]).ok();
}

#[test]
fn hidden_files_of_directory_are_reported() {
    let world = World::default();
    let folder = world.path("folder");
    fs::create_dir_all(folder.join(".ssh")).unwrap();
    fs::write(folder.join(".ssh/authorized_keys"), "key").unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    let tracker = world.tracker("tracker");
    let a = world.running_peer("a", &[&tracker]);
    a.publish(&folder, &[]);
    let b = world.peer("b", &[&tracker]);
    let output = b.run(args(&["get", "folder", "-o"], &world.path("out"))).ok();
    assert!(
        output.stderr.contains("2 files, 10 B, 1 of them hidden: .ssh/authorized_keys"),
        "{}",
        output.stderr
    );
}
