//! Compiled artifacts kept on disk, found again by what they were made from.
//!
//! Comes in: the bytes that decide an artifact, the artifact. Goes out: the artifact, or a miss. An entry is one plain
//! file, written beside its place and moved into it, so that no process sees half of one; it carries a checksum, so
//! that a damaged one is a miss, not a crash. Without a directory to write to everything works, only slower: that is a
//! [`CacheWarning`], never an error.
//!
//! An entry reads: a line with the format's name and version, a line with the checksum of all that follows, a line
//! with the entry's key, a line with the lengths of the signature and of the object, the signature as JSON, the object.

use chunkwise_abi::{ABI_VERSION, Signature};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const FORMAT: &str = "chunkwise-artifact 1";

/// Where artifacts are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: Option<PathBuf>,
}

/// What decides an artifact, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(blake3::Hash);

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl Key {
    /// The key of `canonical`, the bytes of everything that decides what is compiled, and of the calling contract.
    pub fn of(canonical: &[u8]) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ABI_VERSION.to_le_bytes());
        hasher.update(canonical);
        Key(hasher.finalize())
    }
}

/// A compiled artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it computes and takes.
    pub signature: Signature,
    /// Object code.
    pub object: Vec<u8>,
}

/// What looking for an entry gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is there and sound.
    Hit(Box<Entry>),
    /// It is not there.
    Miss,
    /// Something is there that is no sound entry; storing a new one replaces it.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Why the cache is not used, in words for whoever waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheWarning {
    /// One sentence.
    pub message: String,
}

impl std::fmt::Display for CacheWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Cache {
    /// A cache that keeps nothing.
    pub fn off() -> Cache {
        Cache { directory: None }
    }

    /// A cache in a directory, which is made when the first entry is stored.
    pub fn at(directory: impl Into<PathBuf>) -> Cache {
        Cache { directory: Some(directory.into()) }
    }

    /// The user's cache: `$CHUNKWISE_CACHE`, else `$XDG_CACHE_HOME/chunkwise`, else `~/.cache/chunkwise`.
    pub fn of_user() -> (Cache, Option<CacheWarning>) {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG specification has relative paths ignored.
        let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
        let directory = set("CHUNKWISE_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("chunkwise")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache").join("chunkwise")));
        match directory {
            Some(directory) => (Cache::at(directory), None),
            None => {
                let message = "compiled kernels are not kept: no home directory is known; set CHUNKWISE_CACHE to one";
                (Cache::off(), Some(CacheWarning { message: message.to_string() }))
            }
        }
    }

    /// The directory, if there is one.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The file of an entry, if there is a directory.
    pub fn path(&self, key: Key) -> Option<PathBuf> {
        // A folder for each first byte keeps folders small.
        let name = key.to_string();
        self.directory.as_ref().map(|directory| directory.join(&name[..2]).join(name))
    }

    /// Looks for an entry.
    pub fn get(&self, key: Key) -> Lookup {
        let Some(path) = self.path(key) else { return Lookup::Miss };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Lookup::Miss;
            }
            Err(error) => return Lookup::Damaged { path, why: error.to_string() },
        };
        match read_entry(&bytes, key) {
            Ok(entry) => Lookup::Hit(Box::new(entry)),
            Err(why) => Lookup::Damaged { path, why },
        }
    }

    /// Stores an entry, in place of whatever is there.
    pub fn put(&self, key: Key, entry: &Entry) -> Result<(), CacheWarning> {
        let Some(path) = self.path(key) else { return Ok(()) };
        let warn = |error: &dyn std::fmt::Display| CacheWarning {
            message: format!("compiled kernels are not kept: {}: {error}", path.display()),
        };
        let bytes = write_entry(entry, key).map_err(|error| warn(&error))?;
        let folder = path.parent().expect("the path of an entry has a folder");
        fs::create_dir_all(folder).map_err(|error| warn(&error))?;
        // Unlike any other name at this moment, of this process or another.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!(".{key}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = folder.join(unique);
        let written = fs::File::create_new(&temporary).and_then(|mut file| file.write_all(&bytes));
        // What is in the way of a file that takes the place of another can only be a folder: no entry.
        let moved = written.and_then(|()| {
            fs::rename(&temporary, &path).or_else(|_| {
                fs::remove_dir_all(&path)?;
                fs::rename(&temporary, &path)
            })
        });
        moved.map_err(|error| {
            // It may never have come into being; then there is nothing to clear away.
            let _ = fs::remove_file(&temporary);
            warn(&error)
        })
    }
}

fn write_entry(entry: &Entry, key: Key) -> Result<Vec<u8>, serde_json::Error> {
    let signature = serde_json::to_vec(&entry.signature)?;
    let mut body = format!("{key}\n{} {}\n", signature.len(), entry.object.len()).into_bytes();
    body.extend(&signature);
    body.extend(&entry.object);
    let mut bytes = format!("{FORMAT}\n{}\n", blake3::hash(&body).to_hex()).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

fn read_entry(bytes: &[u8], key: Key) -> Result<Entry, String> {
    let (format, rest) = first_line(bytes).ok_or("it ends too early")?;
    if format != FORMAT.as_bytes() {
        return Err("it is no entry of this version".to_string());
    }
    let (checksum, body) = first_line(rest).ok_or("it ends too early")?;
    if checksum != blake3::hash(body).to_hex().as_bytes() {
        return Err("its checksum is another".to_string());
    }
    // From here on the bytes are those that were written; still nothing is taken for granted.
    let (name, rest) = first_line(body).ok_or("it ends too early")?;
    if name != key.to_string().as_bytes() {
        return Err("it is the entry of another key".to_string());
    }
    let (lengths, rest) = first_line(rest).ok_or("it ends too early")?;
    let lengths = std::str::from_utf8(lengths).ok().and_then(|text| {
        let (signature, object) = text.split_once(' ')?;
        Some((signature.parse::<usize>().ok()?, object.parse::<usize>().ok()?))
    });
    let (n_signature, n_object) = lengths.ok_or("its lengths are no numbers")?;
    if n_signature.checked_add(n_object) != Some(rest.len()) {
        return Err("its lengths do not add up".to_string());
    }
    let (signature, object) = rest.split_at(n_signature);
    let signature: Signature = serde_json::from_slice(signature).map_err(|error| error.to_string())?;
    if signature.abi != ABI_VERSION {
        return Err(format!("it follows version {} of the calling contract", signature.abi));
    }
    Ok(Entry { signature, object: object.to_vec() })
}

/// What stands before the first line feed, and what after it.
fn first_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}
