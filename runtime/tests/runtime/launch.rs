//! Launches: right results however many threads work, and an error for whatever is wrong.

use crate::recurrence::{Case, Numbers, V, artifact, artifact_of, assert_close, expected, signature};
use chunkwise_runtime::abi::{Access, Role};
use chunkwise_runtime::batch::{Batch, Sequences};
use chunkwise_runtime::cpu::{LaunchArg, Options};
use chunkwise_runtime::tensor::{ElementType, HostTensor, Tensors};

fn batch(count: usize, length: usize, heads: usize) -> Batch {
    Batch { sequences: Sequences::Equal { count, length }, heads }
}

/// Tensors for the forward kernel, with room for its results.
fn ready(case: &Case, numbers: &mut Numbers, length: usize) -> Tensors {
    let mut tensors = case.tensors(numbers, length);
    let tokens = tensors["q"].shape()[..2].to_vec();
    let room = |shape: &[usize]| HostTensor::poisoned(ElementType::F32, shape).unwrap();
    tensors.insert("out.o".to_string(), room(&[tokens[0], tokens[1], case.h(), V]));
    tensors.insert("final.S".to_string(), room(&[case.lengths.len(), case.h(), V]));
    tensors
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let kernel = artifact().forward.unwrap();
    let mut numbers = Numbers(1);
    for (count, length, heads) in
        [(1, 1, [1; 4]), (3, 5, [4, 2, 1, 4]), (2, 0, [2; 4]), (0, 3, [2; 4]), (40, 2, [3; 4])]
    {
        let case = Case::equal(count, length, heads);
        let mut tensors = ready(&case, &mut numbers, length);
        let batch = batch(count, length, case.h());
        kernel.launch(&mut tensors, &batch, &Options { threads: 1, poison: false }).unwrap();
        let one = ["out.o", "final.S"].map(|name| tensors[name].to_f32());
        for (name, values) in expected(&case, &tensors).into_iter().take(2) {
            assert_close(name, &tensors[name], &values);
        }
        for threads in [2, 3, 16] {
            for poison in [false, true] {
                kernel.launch(&mut tensors, &batch, &Options { threads, poison }).unwrap();
                assert_eq!(["out.o", "final.S"].map(|name| tensors[name].to_f32()), one);
            }
        }
    }
}

#[test]
fn poison_shows_what_a_kernel_leaves_out() {
    // A kernel that does nothing, with the description of one that does.
    unsafe extern "C" fn idle(_: *const chunkwise_runtime::abi::Call, _: i64, _: i64, _: *mut std::ffi::c_void) {}
    let described = signature().forward.unwrap();
    let kernel = unsafe { chunkwise_runtime::cpu::CpuKernel::new(idle, described, std::sync::Arc::new(())) };
    let case = Case::equal(1, 2, [1; 4]);
    let mut tensors = ready(&case, &mut Numbers(2), 2);
    tensors["out.o"].as_mut_f32().unwrap().fill(7.0);
    kernel.launch(&mut tensors, &batch(1, 2, 1), &Options { threads: 1, poison: false }).unwrap();
    assert!(tensors["out.o"].to_f32().iter().all(|x| *x == 7.0));
    kernel.launch(&mut tensors, &batch(1, 2, 1), &Options { threads: 1, poison: true }).unwrap();
    assert!(tensors["out.o"].to_f32().iter().all(|x| x.is_nan()));
}

/// The message of a launch after `change`, with 2 sequences of 4 tokens and 2 heads.
fn refusal(change: impl FnOnce(&mut Tensors), batch: &Batch) -> String {
    let kernel = artifact().forward.unwrap();
    let mut tensors = ready(&Case::equal(2, 4, [2; 4]), &mut Numbers(3), 4);
    change(&mut tensors);
    let before: Vec<String> = tensors.keys().cloned().collect();
    let message = kernel.launch(&mut tensors, batch, &Options::threads(2)).unwrap_err().to_string();
    assert_eq!(tensors.keys().cloned().collect::<Vec<_>>(), before, "the tensors are given back");
    assert!(tensors.values().all(|tensor| tensor.shape() != [0]), "the tensors are given back");
    message
}

#[test]
fn wrong_tensors_are_named_and_explained() {
    let call = batch(2, 4, 2);
    let put = |name: &'static str, dtype, shape: &'static [usize]| {
        move |tensors: &mut Tensors| {
            tensors.insert(name.to_string(), HostTensor::zeros(dtype, shape).unwrap());
        }
    };
    let f32 = ElementType::F32;
    let without = |name: &'static str| {
        move |tensors: &mut Tensors| {
            tensors.shift_remove(name);
        }
    };
    assert_eq!(refusal(without("v"), &call), "tensor `v` is missing; give one of shape [B, T, H, V = 3]");
    assert_eq!(refusal(without("final.S"), &call), "tensor `final.S` is missing; give one of shape [B, H, V = 3]");
    assert_eq!(refusal(put("w", ElementType::F64, &[2]), &call), "tensor `w` holds f64, this kernel takes f32");
    assert_eq!(refusal(put("k", f32, &[2, 4]), &call), "tensor `k` has shape [2, 4], expected [B, T, H]");
    assert_eq!(
        refusal(put("k", f32, &[2, 5, 2]), &call),
        "tensor `k` has shape [2, 5, 2], expected [B = 2, T = 4, H = 2]"
    );
    assert_eq!(
        refusal(put("v", f32, &[2, 4, 2, 4]), &call),
        "tensor `v` has shape [2, 4, 2, 4], expected [B = 2, T = 4, H = 2, V = 3]"
    );
    assert_eq!(
        refusal(put("out.o", f32, &[2, 4, 1, 3]), &call),
        "tensor `out.o` has shape [2, 4, 1, 3], expected [B = 2, T = 4, H = 2, V = 3]"
    );
    assert_eq!(
        refusal(put("init.S", f32, &[2, 1, 3]), &call),
        "tensor `init.S` has shape [2, 1, 3], expected [B = 2, H = 2, V = 3]"
    );
    let heads = "tensor `q` has 3 heads, which do not divide the 2 heads of the largest tensor";
    assert_eq!(refusal(put("q", f32, &[2, 4, 3]), &call), heads);
    let none = "tensor `q` has 0 heads, which do not divide the 2 heads of the largest tensor";
    assert_eq!(refusal(put("q", f32, &[2, 4, 0]), &call), none);
    assert_eq!(
        refusal(|_| {}, &batch(2, usize::MAX, 2)),
        format!("tensor `q` has shape [2, 4, 2], expected [B = 2, T = {}, H = 2]", usize::MAX)
    );
}

#[test]
fn arguments_in_order_are_checked_too() {
    let kernel = artifact().forward.unwrap();
    let tensor = HostTensor::zeros(ElementType::F32, &[1, 1, 1]).unwrap();
    let message = |args: &mut [LaunchArg]| {
        kernel.launch_args(args, &batch(1, 1, 1), &Options::threads(1)).unwrap_err().to_string()
    };
    assert_eq!(
        message(&mut [LaunchArg::Read(&tensor)]),
        "the kernel's description is damaged: it has 7 arguments, 1 were given"
    );
    let mut other = tensor.clone();
    let mut args: Vec<LaunchArg> = (0..6).map(|_| LaunchArg::Read(&tensor)).collect();
    args.insert(0, LaunchArg::Write(&mut other));
    assert_eq!(
        message(&mut args),
        "the kernel's description is damaged: `q` was given to be read where it is written, or the other way"
    );
    let mut twice = signature();
    twice.forward.as_mut().unwrap().args[1].name = "q".to_string();
    let kernel = artifact_of(twice).forward.unwrap();
    let mut tensors = ready(&Case::equal(1, 1, [1; 4]), &mut Numbers(4), 1);
    let error = kernel.launch(&mut tensors, &batch(1, 1, 1), &Options::threads(1)).unwrap_err();
    assert_eq!(error.to_string(), "the kernel's description is damaged: `q` occurs twice");
}

#[test]
fn offsets_of_packed_sequences_are_checked() {
    let message = |offsets: &[usize]| Sequences::packed(offsets).unwrap_err().to_string();
    assert_eq!(message(&[]), "the offsets of packed sequences must start with 0");
    assert_eq!(message(&[1, 2]), "the offsets of packed sequences must start with 0");
    assert_eq!(message(&[0, 3, 2]), "the offsets of packed sequences fall from 3 to 2");
    assert_eq!(message(&[0, usize::MAX]), "the offsets of packed sequences are too large");
    let packed = Sequences::packed(&[0, 3, 3, 8]).unwrap();
    assert_eq!((packed.count(), packed.longest(), packed.total()), (3, 5, Some(8)));
    // Offsets that end elsewhere than the tensors do not get to the kernel.
    let beyond = Batch { sequences: Sequences::packed(&[0, 9]).unwrap(), heads: 2 };
    assert_eq!(refusal(|_| {}, &beyond), "tensor `q` has shape [2, 4, 2], expected [B = 1, T = 9, H = 2]");
}

#[test]
fn very_many_empty_sequences_do_not_hang() {
    // A kernel that writes per-token results only.
    let mut described = signature();
    let forward = described.forward.as_mut().unwrap();
    forward.args.retain(|arg| !(arg.role == Role::Sequence && arg.access == Access::Write));
    let kernel = artifact_of(described).forward.unwrap();
    let count = 1 << 50;
    let mut tensors = Tensors::new();
    for (name, shape) in [
        ("q", vec![count, 0, 1]),
        ("k", vec![count, 0, 1]),
        ("v", vec![count, 0, 1, V]),
        ("out.o", vec![count, 0, 1, V]),
        ("w", vec![1]),
        ("init.S", vec![count, 1, V]),
    ] {
        if let Ok(tensor) = HostTensor::zeros(ElementType::F32, &shape) {
            tensors.insert(name.to_string(), tensor);
        }
    }
    let call = batch(count, 0, 1);
    let error = kernel.launch(&mut tensors, &call, &Options::threads(2)).unwrap_err();
    assert_eq!(error.to_string(), "tensor `init.S` is missing; give one of shape [B, H, V = 3]");
    let mut described = kernel.signature().clone();
    described.args.retain(|arg| arg.role != Role::Sequence);
    let kernel = unsafe { chunkwise_runtime::cpu::CpuKernel::new(kernel.function(), described, kernel.keep_alive()) };
    kernel.launch(&mut tensors, &call, &Options::threads(2)).unwrap();
}
