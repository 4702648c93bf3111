//! Whole runs: outputs and gradients by name, defaults, groups of heads, packed sequences.

use crate::recurrence::{Case, Numbers, V, artifact, artifact_of, assert_close, expected, signature};
use chunkwise_runtime::cpu::Options;
use chunkwise_runtime::tensor::{ElementType, HostTensor, Tensors};

const RESULTS: [&str; 7] = ["out.o", "final.S", "grad.q", "grad.k", "grad.v", "grad.w", "grad_init.S"];

#[test]
fn outputs_and_gradients_agree_with_plain_loops() {
    let artifact = artifact();
    let mut numbers = Numbers(11);
    let packed = |lengths: &[usize], heads| Case { lengths: lengths.to_vec(), packed: true, heads };
    for case in [
        Case::equal(1, 1, [1; 4]),
        Case::equal(2, 7, [2; 4]),
        Case::equal(3, 4, [4, 2, 1, 2]),
        Case::equal(2, 5, [1, 3, 3, 1]),
        Case::equal(2, 0, [2, 1, 2, 2]),
        packed(&[3, 0, 5, 1], [2; 4]),
        packed(&[6, 3], [2, 4, 1, 4]),
        packed(&[0, 0], [2; 4]),
        packed(&[], [1; 4]),
    ] {
        let inputs = case.tensors(&mut numbers, 0);
        let offsets = case.offsets();
        for threads in [1, 3] {
            let options = Options { threads, poison: true };
            let results = artifact.run_backward(&inputs, offsets.as_deref(), &options).unwrap();
            assert_eq!(results.keys().collect::<Vec<_>>(), RESULTS);
            for (name, values) in expected(&case, &inputs) {
                assert_close(name, &results[name], &values);
            }
            let forward = artifact.run(&inputs, offsets.as_deref(), &options).unwrap();
            assert_eq!(forward.keys().collect::<Vec<_>>(), RESULTS[..2].iter().collect::<Vec<_>>());
            for (name, tensor) in &forward {
                assert_eq!(tensor.to_f32(), results[name].to_f32());
                assert_eq!(tensor.shape(), results[name].shape());
            }
        }
        // Gradients have the shapes of what they belong to.
        let results = artifact.run_backward(&inputs, offsets.as_deref(), &Options::threads(1)).unwrap();
        for (gradient, source) in [("grad.q", "q"), ("grad.v", "v"), ("grad.w", "w"), ("grad_init.S", "init.S")] {
            assert_eq!(results[gradient].shape(), inputs[source].shape());
        }
    }
}

#[test]
fn no_sequences_give_empty_results_and_zero_gradients() {
    let case = Case::equal(0, 5, [2, 1, 2, 2]);
    let inputs = case.tensors(&mut Numbers(12), 5);
    let results = artifact().run_backward(&inputs, None, &Options::threads(2)).unwrap();
    assert_eq!(results["out.o"].shape(), [0, 5, 2, V]);
    assert_eq!(results["final.S"].shape(), [0, 2, V]);
    assert_eq!(results["grad.w"].to_f32(), [0.0, 0.0]);
    assert_eq!(results["grad.k"].shape(), [0, 5, 1]);
}

#[test]
fn absent_states_and_cotangents_are_zero() {
    let artifact = artifact();
    let case = Case::equal(2, 3, [2; 4]);
    let mut inputs = case.tensors(&mut Numbers(13), 3);
    for name in ["init.S", "grad_out.o"] {
        let zeros = HostTensor::zeros(ElementType::F32, inputs[name].shape()).unwrap();
        inputs.insert(name.to_string(), zeros);
    }
    let given = artifact.run_backward(&inputs, None, &Options::threads(1)).unwrap();
    inputs.shift_remove("init.S");
    inputs.shift_remove("grad_out.o");
    let absent = artifact.run_backward(&inputs, None, &Options::threads(1)).unwrap();
    for name in RESULTS {
        assert_eq!(given[name].to_f32(), absent[name].to_f32(), "{name}");
    }
    // With the cotangents of the final state alone, everything but q has a gradient.
    for name in ["final.S", "grad.k", "grad.v", "grad.w", "grad_init.S"] {
        assert!(absent[name].to_f32().iter().any(|x| *x != 0.0), "{name} shows nothing");
    }
}

#[test]
fn any_float_type_is_taken() {
    let artifact = artifact();
    let case = Case::equal(1, 4, [1; 4]);
    let inputs = case.tensors(&mut Numbers(14), 4);
    let wide: Tensors =
        inputs.iter().map(|(name, tensor)| (name.clone(), tensor.to_type(ElementType::F64).unwrap())).collect();
    let options = Options::threads(1);
    let (narrow, wide) = (artifact.run(&inputs, None, &options).unwrap(), artifact.run(&wide, None, &options).unwrap());
    assert_eq!(narrow["out.o"].to_f32(), wide["out.o"].to_f32());
    assert_eq!(wide["out.o"].dtype(), ElementType::F32);
}

#[test]
fn memory_given_back_is_used_again_and_changes_nothing() {
    let artifact = artifact();
    let inputs = Case::equal(2, 6, [2; 4]).tensors(&mut Numbers(15), 6);
    let options = Options { threads: 2, poison: false };
    let first = artifact.run_backward(&inputs, None, &options).unwrap();
    let values: Vec<Vec<f32>> = first.values().map(HostTensor::to_f32).collect();
    let address = first["out.o"].as_f32().unwrap().as_ptr();
    artifact.recycle(first);
    let mut reused = false;
    for _ in 0..4 {
        let again = artifact.run_backward(&inputs, None, &options).unwrap();
        assert_eq!(again.values().map(HostTensor::to_f32).collect::<Vec<_>>(), values);
        reused |= again.values().any(|tensor| tensor.as_f32().unwrap().as_ptr() == address);
        artifact.recycle(again);
    }
    assert!(reused);
}

#[test]
fn what_cannot_run_says_why() {
    let inputs = Case::equal(2, 4, [2; 4]).tensors(&mut Numbers(16), 4);
    let options = Options::threads(1);
    let message = |change: &dyn Fn(&mut Tensors), offsets: Option<&[usize]>| {
        let mut inputs = inputs.clone();
        change(&mut inputs);
        artifact().run(&inputs, offsets, &options).unwrap_err().to_string()
    };
    let unchanged = |_: &mut Tensors| {};
    let remove = |inputs: &mut Tensors| {
        inputs.shift_remove("k");
    };
    assert_eq!(message(&remove, None), "tensor `k` is missing; give one of shape [B, T, H]");
    assert_eq!(message(&Tensors::clear, None), "tensor `q` is missing; give one of shape [B, T, H]");
    let packed = message(&unchanged, Some(&[0, 8]));
    assert_eq!(packed, "tensor `q` has shape [2, 4, 2], expected [B = 1, T = 8, H = 2]");
    assert_eq!(message(&unchanged, Some(&[3])), "the offsets of packed sequences must start with 0");
    let saved = artifact().run_saving(&inputs, None, &options).unwrap().saved;
    assert_eq!(saved.keys().collect::<Vec<_>>(), ["saved.S"]);
    let error = artifact().gradients(&inputs, &Tensors::new(), None, &options).unwrap_err();
    assert_eq!(error.to_string(), "tensor `saved.S` is missing; give one of shape [chunk slots, H, V = 3]");
    let mut limited = signature();
    limited.max_length = Some(3);
    limited.backward = None;
    let limited = artifact_of(limited);
    assert_eq!(
        limited.run(&inputs, None, &options).unwrap_err().to_string(),
        "the recurrent form of `small` takes at most 3 tokens a sequence, this one has 4; \
         use the chunkwise or the recurrent form"
    );
    let error = limited.gradients(&inputs, &saved, None, &options).unwrap_err();
    assert_eq!(error.to_string(), "`small` was built without a backward kernel");
}

#[test]
fn a_signature_that_does_not_fit_is_refused() {
    use chunkwise_runtime::execute::CpuArtifact;
    use std::sync::Arc;
    let refusal = |signature| {
        let nothing: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
        unsafe { CpuArtifact::new(signature, &nothing, |_| None) }.unwrap_err().to_string()
    };
    assert_eq!(refusal(signature()), "the kernel's description is damaged: there is no function `forward`");
    let mut other = signature();
    other.abi += 1;
    assert!(refusal(other).contains("version 2 of the calling contract, this is 1"));
}

#[test]
fn artifacts_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<chunkwise_runtime::execute::CpuArtifact>();
    let artifact = artifact();
    let inputs = Case::equal(2, 9, [2; 4]).tensors(&mut Numbers(17), 9);
    let alone = artifact.run_backward(&inputs, None, &Options::threads(1)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let results = artifact.run_backward(&inputs, None, &Options::threads(2)).unwrap();
                    for (name, tensor) in &results {
                        assert_eq!(tensor.to_f32(), alone[name].to_f32(), "{name}");
                    }
                    artifact.recycle(results);
                }
            });
        }
    });
}
