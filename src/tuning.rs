//! Which schedules were fastest when they were tried: records on disk. In: a program, a GPU, a load; out: the schedule
//! that `tune` found for their like, if it did. A record is found by its name alone, so looking costs one file.

use std::path::{Path, PathBuf};

use chunkwise_abi::DType;
use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::schedule::cost::Load;
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::cache::{Cache, Key};
use serde_json::Value;

use crate::failure::Failure;
use crate::source::plain;

/// Loads that one record speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// How well heads of all sequences together fill the GPU, one block each: `many`, `some`, `few`.
    pub heads: &'static str,
    /// Tokens of a sequence, rounded up to a power of two.
    pub tokens: usize,
}

impl Bucket {
    /// The bucket of a load on a GPU of so many multiprocessors.
    pub fn of(load: &Load, multiprocessors: usize) -> Bucket {
        let heads = if 2 * load.items > multiprocessors {
            "many"
        } else if 8 * load.items > multiprocessors {
            "some"
        } else {
            "few"
        };
        Bucket { heads, tokens: load.tokens.max(1).checked_next_power_of_two().unwrap_or(load.tokens) }
    }
}

/// What a record is about.
pub struct Tuned<'a> {
    /// The program with its sizes and constants.
    pub instance: &'a Instance<'a>,
    /// Type of the tensors of a token.
    pub dtype: DType,
    /// The GPU's name.
    pub device: &'a str,
    /// The load.
    pub bucket: Bucket,
}

impl Tuned<'_> {
    /// The name of the record's file.
    pub fn file(&self) -> String {
        let Bucket { heads, tokens } = self.bucket;
        format!("{}{}-{heads}-{tokens}.json", stem(self.instance, self.dtype), plain_word(self.device))
    }

    /// The schedule that was fastest, if it was tried. A record that cannot be read is told, not passed over.
    pub fn find(&self, parts: Parts) -> Result<Option<Schedule>, Failure> {
        let Some(folder) = folder() else { return Ok(None) };
        let path = folder.join(self.file());
        match std::fs::read_to_string(&path) {
            Ok(text) => fastest(&path, &text, parts),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::Input(format!("`{}` cannot be read: {}", path.display(), plain(&error)))),
        }
    }
}

/// How the names of all records of a program begin.
pub fn stem(instance: &Instance, dtype: DType) -> String {
    let key = Key::of(format!("{instance:?}").as_bytes()).to_string();
    format!("{}-{}-{}-", instance.program.name, &key[..16], dtype.name())
}

/// Where records are: in `$CHUNKWISE_TUNING`, nowhere if that is empty, else in the folder `tuning` of the cache.
pub fn folder() -> Option<PathBuf> {
    match std::env::var_os("CHUNKWISE_TUNING") {
        Some(folder) if folder.is_empty() => None,
        Some(folder) => Some(PathBuf::from(folder)),
        None => Cache::of_user().0.directory().map(|directory| directory.join("tuning")),
    }
}

/// What a record says was fastest; nothing if that was the compiler's own choice.
pub fn fastest(path: &Path, text: &str, parts: Parts) -> Result<Option<Schedule>, Failure> {
    let wrong = |why: String| Failure::Input(format!("`{}` is no record of `tune`: {why}", path.display()));
    let record: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let direction = match parts {
        Parts::Forward => "forward",
        Parts::Gradients | Parts::Both => "forward+backward",
    };
    let schedule = record["fastest"].get(direction).ok_or_else(|| wrong(format!("it names no fastest {direction}")))?;
    match schedule["schedule"].as_str() {
        Some(schedule) => schedule.parse().map(Some).map_err(|error| wrong(format!("{error}"))),
        None => Ok(None),
    }
}

/// A record of a program, for whoever makes a library of it.
pub struct Record {
    /// Its file's name.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The compute capability of the GPU it was made on.
    capability: (u32, u32),
    /// What was fastest with the gradients.
    schedule: Option<Schedule>,
    /// Where it stands among others: loads that fill the GPU first, then long sequences.
    weight: (u32, u64),
}

/// Every record of a program, on whichever GPU and for whichever load.
pub fn records(instance: &Instance, dtype: DType) -> Result<Vec<Record>, Failure> {
    let stem = stem(instance, dtype);
    let Some(entries) = folder().and_then(|folder| std::fs::read_dir(folder).ok()) else { return Ok(vec![]) };
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let (path, file) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if !file.starts_with(&stem) || !file.ends_with(".json") {
            continue;
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::Input(format!("`{}` cannot be read: {}", path.display(), plain(&error))))?;
        let schedule = fastest(&path, &text, Parts::Both)?;
        let record: Value = serde_json::from_str(&text).unwrap_or_default();
        let capability = record["capability"].as_str().unwrap_or_default().split_once('.');
        let capability = capability.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let filled = match record["bucket"]["heads"].as_str() {
            Some("many") => 2,
            Some("some") => 1,
            Some(_) | None => 0,
        };
        let weight = (filled, record["bucket"]["tokens"].as_u64().unwrap_or(0));
        records.push(Record { file, text, capability: capability.unwrap_or((0, 0)), schedule, weight });
    }
    // In an order that does not depend on the file system.
    records.sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.file.cmp(&b.file)));
    Ok(records)
}

/// The schedule for a library's code for an architecture, which serves every load: the one for a GPU that is filled.
pub fn of_library(records: &[Record], arch: &str) -> Option<Schedule> {
    let fits = |record: &&Record| chunkwise_runtime::cuda::device::runs_on(arch, record.capability);
    records.iter().find(fits)?.schedule
}

/// Small letters, digits and hyphens.
fn plain_word(text: &str) -> String {
    text.to_lowercase().chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_filled_by_many_heads() {
        let heads = |items| Bucket::of(&Load { items, tokens: 100 }, 132);
        assert_eq!([128, 32, 8].map(|items| heads(items).heads), ["many", "some", "few"]);
        assert_eq!(heads(8).tokens, 128);
    }

    #[test]
    fn a_record_says_what_was_fastest() {
        let path = Path::new("record.json");
        let text = r#"{ "fastest": { "forward": { "schedule": "pass + outputs, chunk 64" },
                                     "forward+backward": { "schedule": null } } }"#;
        let forward = fastest(path, text, Parts::Forward).unwrap().map(|schedule| schedule.to_string());
        assert_eq!(forward.as_deref(), Some("pass + outputs, chunk 64"));
        assert_eq!(fastest(path, text, Parts::Both).unwrap(), None);
        for wrong in ["{", "{}", r#"{ "fastest": { "forward": { "schedule": "all at once" } } }"#] {
            let refused = fastest(path, wrong, Parts::Forward).unwrap_err().to_string();
            assert!(refused.contains("`record.json` is no record of `tune`"), "{refused}");
        }
    }
}
