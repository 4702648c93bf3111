//! The cache on disk: what was stored is found, what was damaged is not trusted, nobody sees half an entry.

use crate::recurrence::signature;
use chunkwise_runtime::cache::{Cache, Entry, Key, Lookup};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty directory of this test's own, removed when it is done.
struct Scratch(PathBuf);
impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("chunkwise-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn entry(seed: u8, n: usize) -> Entry {
    let mut signature = signature();
    signature.chunk = seed as usize;
    Entry { signature, object: (0..n).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect() }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn what_is_stored_is_found_again() {
    let scratch = Scratch::new("stored");
    let cache = Cache::at(scratch.0.join("not").join("yet"));
    let key = Key::of(b"one");
    assert_eq!(cache.get(key), Lookup::Miss);
    cache.put(key, &entry(1, 1000)).unwrap();
    assert_eq!(cache.get(key), Lookup::Hit(Box::new(entry(1, 1000))));
    assert_eq!(cache.get(Key::of(b"other")), Lookup::Miss);
    cache.put(key, &entry(2, 0)).unwrap();
    assert_eq!(cache.get(key), Lookup::Hit(Box::new(entry(2, 0))));
    // One plain file, nothing left over.
    assert_eq!(files_below(&scratch.0), [cache.path(key).unwrap()]);
    assert_ne!(Key::of(b"ab"), Key::of(b"abc"));
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let scratch = Scratch::new("changed");
    let cache = Cache::at(&scratch.0);
    let key = Key::of(b"key");
    // A short one: each of its bytes costs a file.
    let mut short = entry(3, 100);
    (short.signature.forward, short.signature.forward_saving, short.signature.backward) = (None, None, None);
    cache.put(key, &short).unwrap();
    let path = cache.path(key).unwrap();
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(cache.get(key), Lookup::Damaged { .. }), "byte {at}");
    }
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(matches!(cache.get(key), Lookup::Damaged { .. }), "cut to {len} bytes");
    }
    std::fs::write(&path, [&good[..], b"more"].concat()).unwrap();
    assert!(matches!(cache.get(key), Lookup::Damaged { .. }));
    // Storing puts it right again.
    cache.put(key, &short).unwrap();
    assert_eq!(cache.get(key), Lookup::Hit(Box::new(short)));
}

#[test]
fn a_sound_file_in_the_wrong_place_is_not_taken() {
    let scratch = Scratch::new("wrong-place");
    let cache = Cache::at(&scratch.0);
    let (one, other) = (Key::of(b"one"), Key::of(b"other"));
    cache.put(one, &entry(4, 50)).unwrap();
    cache.put(other, &entry(5, 50)).unwrap();
    std::fs::copy(cache.path(one).unwrap(), cache.path(other).unwrap()).unwrap();
    let Lookup::Damaged { why, .. } = cache.get(other) else { panic!("it was taken") };
    assert_eq!(why, "it is the entry of another key");
    // A folder where the file should be is damage, too, and gives way.
    let path = cache.path(other).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    assert!(matches!(cache.get(other), Lookup::Damaged { .. }));
    cache.put(other, &entry(5, 50)).unwrap();
    assert_eq!(cache.get(other), Lookup::Hit(Box::new(entry(5, 50))));
}

#[test]
fn without_a_directory_to_write_to_there_is_a_warning_and_no_error() {
    let scratch = Scratch::new("unwritable");
    let file = scratch.0.join("a file");
    std::fs::write(&file, "not a folder").unwrap();
    let cache = Cache::at(file.join("below"));
    let key = Key::of(b"key");
    assert_eq!(cache.get(key), Lookup::Miss);
    let warning = cache.put(key, &entry(6, 10)).unwrap_err();
    assert!(warning.message.starts_with("compiled kernels are not kept: "), "{warning}");
    let off = Cache::off();
    off.put(key, &entry(6, 10)).unwrap();
    assert_eq!(off.get(key), Lookup::Miss);
}

const ENTRIES: usize = 3;

/// Stores and reads the same few entries over and over; whatever is found must be whole.
fn race(cache: &Cache, rounds: usize, writer: u8) {
    for round in 0..rounds {
        let which = round % ENTRIES;
        let key = Key::of(&[which as u8]);
        // Every writer has another idea of the content, of another length.
        cache.put(key, &entry(writer, 20_000 + 997 * writer as usize)).unwrap();
        match cache.get(key) {
            Lookup::Hit(found) => {
                let from = found.signature.chunk as u8;
                assert_eq!(*found, entry(from, 20_000 + 997 * from as usize));
            }
            Lookup::Miss => panic!("an entry that was stored is gone"),
            Lookup::Damaged { why, .. } => panic!("{why}"),
        }
    }
}

/// The part of one process in `processes_and_threads_never_see_half_an_entry`, which starts it.
#[test]
#[ignore = "started by another test, in processes of their own"]
fn one_of_several_processes() {
    let directory = std::env::var_os("CHUNKWISE_RACE").expect("set by the test that starts this one");
    let writer = std::env::var("CHUNKWISE_WRITER").unwrap().parse().unwrap();
    race(&Cache::at(PathBuf::from(directory)), 60, writer);
}

#[test]
fn processes_and_threads_never_see_half_an_entry() {
    let scratch = Scratch::new("race");
    let mut children = Vec::new();
    for writer in 1..=3 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::one_of_several_processes", "--ignored"])
            .env("CHUNKWISE_RACE", &scratch.0)
            .env("CHUNKWISE_WRITER", writer.to_string())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        children.push(child);
    }
    std::thread::scope(|scope| {
        for writer in 4..=6 {
            let directory = scratch.0.clone();
            scope.spawn(move || race(&Cache::at(directory), 60, writer));
        }
    });
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
    assert_eq!(files_below(&scratch.0).len(), ENTRIES);
}

/// Says which directory is the user's, for `the_environment_says_where`.
#[test]
#[ignore = "started by another test, with an environment of its own"]
fn say_the_directory() {
    let (cache, warning) = Cache::of_user();
    println!("directory <{:?}> warning <{}>", cache.directory(), warning.is_some());
}

#[test]
fn the_environment_says_where() {
    let said = |variables: &[(&str, &str)]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cache::say_the_directory", "--ignored", "--nocapture"]);
        for name in ["CHUNKWISE_CACHE", "XDG_CACHE_HOME", "HOME"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let start = text.find("directory <").unwrap_or_else(|| panic!("{text}"));
        text[start..].lines().next().unwrap().to_string()
    };
    let all = [("CHUNKWISE_CACHE", "/c"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(said(&all), "directory <Some(\"/c\")> warning <false>");
    assert_eq!(said(&all[1..]), "directory <Some(\"/x/chunkwise\")> warning <false>");
    assert_eq!(said(&all[2..]), "directory <Some(\"/h/.cache/chunkwise\")> warning <false>");
    assert_eq!(
        said(&[("XDG_CACHE_HOME", "relative"), all[2]]),
        "directory <Some(\"/h/.cache/chunkwise\")> warning <false>"
    );
    assert_eq!(said(&[("CHUNKWISE_CACHE", "")]), "directory <None> warning <true>");
}
