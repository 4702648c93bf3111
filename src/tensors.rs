//! `.safetensors` files. In: a path, or tensors; out: tensors in float64, or a file that is whole or absent.
//!
//! A file comes from anywhere, so nothing in it is believed: the header is read here, entry by entry, and every
//! offset is held against the file's real size before a byte is touched. Data are converted only when asked for.

use std::path::Path;

use chunkwise_compiler::tensor::{Bundle, Tensor, elements};
use half::{bf16, f16};
use indexmap::IndexMap;
use safetensors::Dtype;
use serde_json::Value;

use crate::failure::Failure;
use crate::precision::{Precision, to_bf16, to_f16};
use crate::source::plain;

/// A header larger than this holds no tensors that anybody named by hand.
const MAX_HEADER: usize = 16 << 20;

/// A file as it lies in memory.
#[derive(Clone, Debug)]
pub struct TensorFile {
    path: String,
    bytes: Vec<u8>,
    entries: IndexMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `F32`, `I64`, …, as written.
    pub type_name: String,
    /// Extent of every dimension.
    pub shape: Vec<usize>,
    /// Bytes of the file that hold the data.
    range: std::ops::Range<usize>,
}

impl Entry {
    /// The number type, if it is one that is computed with.
    pub fn precision(&self) -> Option<Precision> {
        match self.type_name.as_str() {
            "F64" => Some(Precision::F64),
            "F32" => Some(Precision::F32),
            "BF16" => Some(Precision::Bf16),
            "F16" => Some(Precision::F16),
            _ => None,
        }
    }
}

impl TensorFile {
    /// Reads a file and checks its header.
    pub fn read(path: &Path) -> Result<TensorFile, Failure> {
        let shown = path.display().to_string();
        let refuse = |what: String| Failure::Input(format!("`{shown}` {what}"));
        let cannot = |error: &std::io::Error| refuse(format!("cannot be read: {}", plain(error)));
        let metadata = std::fs::metadata(path).map_err(|error| cannot(&error))?;
        if metadata.is_dir() {
            return Err(refuse("is a folder; give a .safetensors file".to_owned()));
        }
        if !metadata.is_file() {
            return Err(refuse("is not an ordinary file".to_owned()));
        }
        let bytes = std::fs::read(path).map_err(|error| cannot(&error))?;
        TensorFile::parse(shown.clone(), bytes).map_err(refuse)
    }

    /// Checks the header of a file's bytes.
    pub fn parse(path: String, bytes: Vec<u8>) -> Result<TensorFile, String> {
        let broken = |what: String| format!("is not a whole .safetensors file: {what}");
        let Some(length) = bytes.first_chunk::<8>() else {
            return Err(broken(format!("it has {} bytes, and the length of the header alone takes 8", bytes.len())));
        };
        let length = u64::from_le_bytes(*length);
        let rest = bytes.len() - 8;
        if length > rest as u64 {
            return Err(broken(format!("the header should take {length} bytes, but only {rest} follow")));
        }
        let length = length as usize;
        if length > MAX_HEADER {
            return Err(broken(format!("its header takes {length} bytes; more than {MAX_HEADER} is not accepted")));
        }
        let header: IndexMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length])
            .map_err(|error| broken(format!("its header is not the JSON object it should be ({error})")))?;
        let mut entries = IndexMap::new();
        for (name, value) in header {
            if name != "__metadata__" {
                let entry = entry(&value, 8 + length, bytes.len())
                    .map_err(|what| broken(format!("tensor `{}` {what}", shown_name(&name))))?;
                entries.insert(name, entry);
            }
        }
        check_overlaps(&entries).map_err(broken)?;
        Ok(TensorFile { path, bytes, entries })
    }

    /// What the file is called in messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its tensors, in the order of the header.
    pub fn entries(&self) -> &IndexMap<String, Entry> {
        &self.entries
    }

    /// One tensor's numbers, each rounded to `precision`.
    pub fn tensor(&self, name: &str, precision: Precision) -> Result<Tensor, Failure> {
        let entry = &self.entries[name];
        let Some(stored) = entry.precision() else {
            return Err(Failure::Input(format!(
                "`{name}` in `{}` holds {}; tensors of F64, F32, BF16 or F16 are taken",
                self.path, entry.type_name
            )));
        };
        let bytes = &self.bytes[entry.range.clone()];
        let mut data: Vec<f64> = match stored {
            Precision::F64 => numbers(bytes, f64::from_le_bytes),
            Precision::F32 => numbers(bytes, |b| f32::from_le_bytes(b) as f64),
            Precision::Bf16 => numbers(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            Precision::F16 => numbers(bytes, |b| f16::from_le_bytes(b).to_f64()),
        };
        if stored != precision {
            for value in &mut data {
                *value = precision.round(*value);
            }
        }
        Ok(Tensor { shape: entry.shape.clone(), data })
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Reads one entry of the header; `data` and `end` are where the data of all tensors begin and the file ends.
fn entry(value: &Value, data: usize, end: usize) -> Result<Entry, String> {
    let type_name = value.get("dtype").and_then(Value::as_str).ok_or("has no `dtype`")?.to_owned();
    let whole = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let wholes = |key: &str| -> Result<Vec<usize>, String> {
        let list = value.get(key).and_then(Value::as_array).ok_or_else(|| format!("has no `{key}`"))?;
        list.iter().map(whole).collect::<Option<_>>().ok_or_else(|| format!("has a `{key}` that is not whole numbers"))
    };
    let shape = wholes("shape")?;
    let offsets = wholes("data_offsets")?;
    let [from, to] = offsets[..] else { return Err("needs two `data_offsets`, where it begins and ends".to_owned()) };
    let available = end - data;
    if from > to || to > available {
        return Err(format!("should lie at bytes {from} to {to} of the data, and the data are {available} bytes"));
    }
    if let Some(width) = width(&type_name) {
        let needed = elements(&shape).and_then(|elements| elements.checked_mul(width));
        if needed != Some(to - from) {
            let needed = needed.map_or("more than can be addressed".to_owned(), |needed| needed.to_string());
            return Err(format!(
                "of type {type_name} and shape {shape:?} needs {needed} bytes, and {} are given to it",
                to - from
            ));
        }
    }
    Ok(Entry { type_name, shape, range: data + from..data + to })
}

/// Bytes of an element, for the types that exist; what is of another type is not looked at.
fn width(type_name: &str) -> Option<usize> {
    match type_name {
        "F64" | "I64" | "U64" | "C64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "BF16" | "F16" | "I16" | "U16" => Some(2),
        "I8" | "U8" | "BOOL" => Some(1),
        _ => None,
    }
}

fn check_overlaps(entries: &IndexMap<String, Entry>) -> Result<(), String> {
    let mut by_place: Vec<(&String, &Entry)> = entries.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
    by_place.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    match by_place.windows(2).find(|pair| pair[0].1.range.end > pair[1].1.range.start) {
        None => Ok(()),
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", shown_name(pair[0].0), shown_name(pair[1].0))),
    }
}

/// A name from a file, fit to be printed: short and without control characters.
pub fn shown_name(name: &str) -> String {
    let mut shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().count() > 80 {
        shown.push('…');
    }
    shown
}

/// A tensor on its way into a file.
struct Outgoing {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for &Outgoing {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        std::borrow::Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes tensors, each in the precision that `precision` gives for its name. Either the whole file appears, or what
/// was there before stays.
pub fn write(path: &Path, tensors: &Bundle, precision: impl Fn(&str) -> Precision) -> Result<(), Failure> {
    let outgoing: IndexMap<&String, Outgoing> =
        tensors.iter().map(|(name, tensor)| (name, outgoing(tensor, precision(name)))).collect();
    let bytes = safetensors::serialize(outgoing.iter().map(|(name, tensor)| (name.as_str(), tensor)), None)
        .map_err(|error| Failure::Ours(format!("the results cannot be put into a file: {error}")))?;
    write_whole(path, &bytes)
}

fn outgoing(tensor: &Tensor, precision: Precision) -> Outgoing {
    let data = &tensor.data;
    let (dtype, bytes) = match precision {
        Precision::F64 => (Dtype::F64, data.iter().flat_map(|&x| x.to_le_bytes()).collect()),
        Precision::F32 => (Dtype::F32, data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()),
        Precision::Bf16 => (Dtype::BF16, data.iter().flat_map(|&x| to_bf16(x).to_le_bytes()).collect()),
        Precision::F16 => (Dtype::F16, data.iter().flat_map(|&x| to_f16(x).to_le_bytes()).collect()),
    };
    Outgoing { dtype, shape: tensor.shape.clone(), bytes }
}

/// Writes a file through a temporary one beside it, so that nobody ever sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let shown = path.display();
    let refuse = |error: &std::io::Error| Failure::Input(format!("`{shown}` cannot be written: {}", plain(error)));
    if path.is_dir() {
        return Err(Failure::Input(format!("`{shown}` is a folder; give the name of a file to write")));
    }
    // A device or a pipe cannot be replaced by a file, and is not meant to be.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, bytes).map_err(|error| refuse(&error));
    }
    // A link keeps pointing where it did; what it points at is replaced.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let permissions = std::fs::metadata(&path).ok().map(|metadata| metadata.permissions());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chunkwise-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As an ordinary file would get them, unless there is one whose permissions are to stay.
        builder.permissions(permissions.unwrap_or_else(|| std::fs::Permissions::from_mode(0o666)));
    }
    let mut file = builder.tempfile_in(folder).map_err(|error| refuse(&error))?;
    std::io::Write::write_all(&mut file, bytes).map_err(|error| refuse(&error))?;
    file.persist(&path).map_err(|error| refuse(&error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn refusal(bytes: Vec<u8>) -> String {
        TensorFile::parse("x".to_owned(), bytes).expect_err("this file is broken")
    }

    #[test]
    fn every_lie_of_a_header_is_found() {
        let entry = |shape: &str, offsets: &str| {
            format!(r#"{{"q":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (bytes, expected) in [
            (b"".to_vec(), "it has 0 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "the header should take 18446744073709551615 bytes, but only 0 follow"),
            (file("[1, 2]", b""), "its header is not the JSON object"),
            (file(&"[".repeat(5000), b""), "its header is not the JSON object"),
            (file("{\"q\": 3}", b""), "tensor `q` has no `dtype`"),
            (file(&entry("[2]", "[0, 8, 9]"), &[0; 8]), "needs two `data_offsets`"),
            (
                file(&entry("[2]", "[0, 8]"), &[0; 7]),
                "should lie at bytes 0 to 8 of the data, and the data are 7 bytes",
            ),
            (file(&entry("[2]", "[8, 0]"), &[0; 8]), "should lie at bytes 8 to 0"),
            (file(&entry("[-2]", "[0, 8]"), &[0; 8]), "`shape` that is not whole numbers"),
            (file(&entry("[3]", "[0, 8]"), &[0; 8]), "needs 12 bytes, and 8 are given"),
            (file(&entry("[4294967296, 4294967296]", "[0, 8]"), &[0; 8]), "needs more than can be addressed"),
        ] {
            let found = refusal(bytes);
            assert!(found.contains(expected), "{found}\nshould say: {expected}");
        }
    }

    #[test]
    fn tensors_that_share_bytes_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(refusal(file(header, &[0; 12])).contains("tensors `a` and `b` overlap"));
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_of_a_file_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors: Bundle = [("q", [2, 3]), ("k", [3, 1])]
            .map(|(name, shape)| (name.to_owned(), Tensor::from_fn(&shape, |i| i as f64)))
            .into();
        write(&path, &tensors, |_| Precision::F32).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            refusal(whole[..length].to_vec());
        }
        for at in 0..whole.len() {
            for flip in [1u8, 0x10, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Ok(file) = TensorFile::parse("x".to_owned(), bytes) {
                    for name in file.entries().keys() {
                        let _ = file.tensor(name, Precision::F64);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back_in_every_precision() {
        let folder = tempfile::tempdir().unwrap();
        for precision in Precision::ALL {
            let path = folder.path().join(precision.name());
            let numbers = [0.1, -3.0, f64::NAN, f64::INFINITY, 0.0];
            let tensors: Bundle = [("o".to_owned(), Tensor { shape: vec![5], data: numbers.to_vec() })].into();
            write(&path, &tensors, |_| precision).unwrap();
            let read = TensorFile::read(&path).unwrap().tensor("o", Precision::F64).unwrap();
            for (read, number) in read.data.iter().zip(numbers) {
                assert_eq!(read.to_bits(), precision.round(number).to_bits(), "{}", precision.name());
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), Precision::ALL.len());
    }
}
