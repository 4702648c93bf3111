//! Libraries made ahead of time, with one made of C here and now.

use crate::recurrence::{Numbers, signature};
use chunkwise_runtime::abi::{ABI_VERSION, Access, ArgSignature, DType, KernelSignature, Manifest, Role, Signature};
use chunkwise_runtime::cpu::Options;
use chunkwise_runtime::library::load;
use chunkwise_runtime::tensor::Tensors;
use std::path::{Path, PathBuf};
use std::process::Command;

/// y = 2 x, token by token.
const SOURCE: &str = "
#include <stdint.h>
typedef struct { void *data; int64_t stride_sequence, stride_time, stride_head, heads; } tensor;
typedef struct { const tensor *tensors; const int64_t *offsets; int64_t sequences, length, heads; } call;
void twice_forward(const call *c, int64_t begin, int64_t end, void *scratch) {
  (void)scratch;
  for (int64_t i = begin; i < end; i++)
    for (int64_t t = 0; t < c->length; t++) {
      const tensor *x = &c->tensors[0], *y = &c->tensors[1];
      int64_t n = i / c->heads, h = i % c->heads;
      ((float *)y->data)[n * y->stride_sequence + t * y->stride_time + h * y->stride_head] =
          2 * ((float *)x->data)[n * x->stride_sequence + t * x->stride_time + h * x->stride_head];
    }
}
";

fn twice() -> Signature {
    let arg = |name: &str, access| ArgSignature {
        name: name.to_string(),
        dtype: DType::F32,
        role: Role::Token,
        inner: vec![],
        axes: vec![],
        access,
    };
    let args = vec![arg("x", Access::Read), arg("out.y", Access::Write)];
    Signature {
        name: "twice".to_string(),
        forward: Some(KernelSignature { symbol: "twice_forward".to_string(), args, scratch_bytes: 0 }),
        forward_saving: None,
        backward: None,
        ..signature()
    }
}

fn manifest() -> Manifest {
    Manifest {
        abi: ABI_VERSION,
        library: "libtwice.so".to_string(),
        features: vec!["sse2".to_string()],
        recurrences: vec![twice()],
        gpu: vec![],
    }
}

struct Folder(PathBuf);
impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("chunkwise-library-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn manifest(&self, manifest: &Manifest) -> PathBuf {
        let path = self.0.join("twice.json");
        std::fs::write(&path, serde_json::to_string_pretty(manifest).unwrap()).unwrap();
        path
    }
    fn refusal(&self, manifest: &Manifest) -> String {
        let path = self.manifest(manifest);
        unsafe { load(&path) }.unwrap_err().to_string().replace(&self.0.display().to_string(), "FOLDER")
    }
}
impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn compile(folder: &Path) {
    std::fs::write(folder.join("twice.c"), SOURCE).unwrap();
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(folder.join("libtwice.so"))
        .arg(folder.join("twice.c"))
        .output()
        .expect("cc, which Rust itself links with");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_library_of_c_runs() {
    let folder = Folder::new("runs");
    compile(&folder.0);
    let artifacts = unsafe { load(&folder.manifest(&manifest())) }.unwrap();
    let mut inputs = Tensors::new();
    inputs.insert("x".to_string(), Numbers(21).tensor(&[2, 3, 2]));
    let results = artifacts[0].run(&inputs, None, &Options::threads(2)).unwrap();
    let doubled: Vec<f32> = inputs["x"].to_f32().iter().map(|x| 2.0 * x).collect();
    assert_eq!(results["out.y"].to_f32(), doubled);
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let folder = Folder::new("refused");
    let missing = unsafe { load(&folder.0.join("none.json")) }.unwrap_err().to_string();
    assert!(missing.contains("cannot read") && missing.contains("none.json"), "{missing}");
    assert!(folder.refusal(&manifest()).starts_with("cannot read FOLDER/libtwice.so: "));
    compile(&folder.0);
    let old = Manifest { abi: 0, ..manifest() };
    assert_eq!(
        folder.refusal(&old),
        "FOLDER/twice.json is no manifest of kernels: it follows version 0 of the calling contract, this is 1"
    );
    for library in ["../libtwice.so", "/lib/libc.so.6", "", ".."] {
        let elsewhere = Manifest { library: library.to_string(), ..manifest() };
        assert!(folder.refusal(&elsewhere).contains("is not the plain name of a file beside it"), "{library}");
    }
    let future = Manifest { features: vec!["avx1024".to_string()], ..manifest() };
    assert_eq!(
        folder.refusal(&future),
        "the library needs `avx1024`, which this processor does not have; build it for this processor"
    );
    let mut renamed = manifest();
    renamed.recurrences[0].forward.as_mut().unwrap().symbol = "thrice_forward".to_string();
    assert_eq!(folder.refusal(&renamed), "the kernel's description is damaged: there is no function `thrice_forward`");
    std::fs::write(folder.0.join("twice.json"), "{").unwrap();
    let error = unsafe { load(&folder.0.join("twice.json")) }.unwrap_err().to_string();
    assert!(error.contains("is no manifest of kernels"), "{error}");
}
