//! Which recurrences go through tokens with their states in registers on a GPU, and that nothing of them spills.

use super::assemble::{assembler, report};
use chunkwise_abi::DType;
use chunkwise_abi::gpu::{GpuModule, Grid};
use chunkwise_compiler::artifact::{Parts, USUAL_SCHEDULE, compile_gpu};
use chunkwise_compiler::compile::Request;
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::target::nvptx::{FAMILIES, Family};
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;
use std::path::Path;

/// The forward of a recurrent form.
fn forward(name: &str, size: usize, dtype: DType, family: &Family, schedule: &Schedule) -> GpuModule {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let source = std::fs::read_to_string(folder.join(format!("{name}.cw"))).unwrap();
    let compiled = chunkwise_dsl::compile(&source).unwrap();
    let program = &compiled.programs[0];
    let of = |axis: &str| match axis {
        "N" => 16,
        "R" => 2,
        _ => size,
    };
    let sizes: BTreeMap<String, usize> = program.axes.iter().map(|axis| (axis.name.clone(), of(&axis.name))).collect();
    let instance = Instance::new(program, &sizes, &BTreeMap::new()).unwrap();
    let request =
        Request { form: Form::Recurrent, chunk: None, max_length: 0, backward: false, inside: Inside::default() };
    compile_gpu(&instance, &request, Parts::Forward, dtype, family, schedule).unwrap().forward.unwrap()
}

fn is_in_registers(module: &GpuModule) -> bool {
    module.kernels.len() == 1 && module.kernels[0].symbol.ends_with("_scan")
}

#[test]
fn every_example_keeps_its_states_in_registers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let assembler = assembler();
    if assembler.is_none() {
        println!("skipped in part: no ptxas; name it in CHUNKWISE_PTXAS");
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for (family, dtype) in FAMILIES.iter().flat_map(|family| [(family, DType::F32), (family, DType::BF16)]) {
            let module = forward(&name, 128, dtype, family, &USUAL_SCHEDULE);
            let what = format!("{name} {} {dtype:?}", family.name);
            assert!(is_in_registers(&module), "{what}");
            assert_eq!(module.kernels[0].workspace_bytes, 0, "{what}");
            let Some(assembler) = &assembler else { continue };
            let report = report(assembler, &module).unwrap_or_else(|said| panic!("{what} does not assemble:\n{said}"));
            assert!(report.contains(" 0 bytes spill stores"), "{what} spills:\n{report}");
        }
    }
}

#[test]
fn what_does_not_fit_and_what_is_asked_otherwise_takes_the_general_way() {
    let family = &FAMILIES[1];
    // A normaliser is every block's, so one block has to hold the whole state.
    assert!(!is_in_registers(&forward("mlstm", 1024, DType::BF16, family, &USUAL_SCHEDULE)));
    let asked = Schedule { threads: Some(256), ..USUAL_SCHEDULE };
    assert!(!is_in_registers(&forward("gla", 64, DType::BF16, family, &asked)));
}

#[test]
fn blocks_of_a_launch_are_those_of_the_code() {
    let family = &FAMILIES[1];
    let Grid::Blocks { blocks } =
        forward("gated_delta_rule", 128, DType::BF16, family, &USUAL_SCHEDULE).kernels[0].grid
    else {
        panic!("columns of a state have nothing to do with each other")
    };
    assert!(blocks > 1 && 128 % blocks == 0);
    assert_eq!(forward("mlstm", 128, DType::BF16, family, &USUAL_SCHEDULE).kernels[0].grid, Grid::Item);
}
