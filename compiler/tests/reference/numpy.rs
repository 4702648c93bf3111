//! The printed NumPy function, run, against the interpreter.

use chunkwise_compiler::reference::{numpy, run};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::Program;
use std::fmt::Write;
use std::process::Command;

use crate::draw::bundle;
use crate::examples::{EVERYTHING, MECHANISMS, mechanism, program};

/// The Python to use, or `None`, said aloud, where it or NumPy is missing.
fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_string());
    match Command::new(&python).args(["-c", "import numpy"]).output() {
        Ok(output) if output.status.success() => Some(python),
        Ok(_) | Err(_) => {
            println!("skipped: `{python} -c \"import numpy\"` fails; set PYTHON to one that has NumPy");
            None
        }
    }
}

/// Runs the printed function on these tensors, and gives back its results under their names.
fn run_in_python(python: &str, program: &Program, tensors: &Bundle) -> Bundle {
    let mut script = numpy::print(program);
    let array = |tensor: &Tensor| format!("np.array({:?}, dtype=float).reshape({:?})", tensor.data, tensor.shape);
    let arguments: Vec<String> = program.tensors.iter().map(|tensor| array(&tensors[&tensor.name])).collect();
    let inits: Vec<String> = program
        .states
        .iter()
        .map(|state| format!("\"{}\": {}", state.name, array(&tensors[&format!("init.{}", state.name)])))
        .collect();
    write!(
        script,
        "\n\noutputs, states = {}({}, init={{{}}})\n\
         for prefix, results in ((\"out\", outputs), (\"final\", states)):\n    \
             for name, array in results.items():\n        \
                 numbers = \" \".join(repr(float(x)) for x in np.ravel(array))\n        \
                 print(prefix + \".\" + name, \"x\".join(map(str, np.shape(array))), numbers, sep=\"|\")\n",
        program.name,
        arguments.join(", "),
        inits.join(", "),
    )
    .expect("writing to a string");
    // Through a file: a command line is too short for the data.
    let path = std::env::temp_dir().join(format!("chunkwise-{}-{}.py", program.name, std::process::id()));
    std::fs::write(&path, &script).expect("the folder for temporary files can be written");
    let output = Command::new(python).arg("-W").arg("error").arg(&path).output().expect("python ran before");
    std::fs::remove_file(&path).expect("it was written above");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), numpy::print(program));
    let text = String::from_utf8(output.stdout).expect("Python prints UTF-8");
    let parse = |line: &str| {
        let [name, shape, numbers]: [&str; 3] = line.split('|').collect::<Vec<_>>().try_into().expect("three fields");
        let shape = shape.split('x').map(|extent| extent.parse().expect("an extent")).collect();
        let data = numbers.split(' ').map(|number| number.parse().expect("a number")).collect();
        (name.to_string(), Tensor { shape, data })
    };
    text.lines().map(parse).collect()
}

fn compare(python: &str, program: &Program, sizes: &[(&str, usize)], lo: f64, hi: f64) {
    let sizes = program.axes.iter().map(|axis| {
        let given = sizes.iter().find(|(name, _)| *name == axis.name);
        (axis.name.clone(), given.map_or(2, |(_, size)| *size))
    });
    let instance = Instance::new(program, &sizes.collect(), &Default::default()).expect("the sizes fit");
    let tensors = bundle(&instance, [2, 5, 3], lo, hi, 1);
    let expected = run(&instance, &tensors).expect("the drawn tensors fit");
    let found = run_in_python(python, program, &tensors);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &found {
        let error = tensor.relative_error(&expected[name], 0.0);
        assert!(error < 1e-13, "{}: {name} is off by {error:e} in\n{}", program.name, numpy::print(program));
    }
}

#[test]
fn the_printed_mechanisms_compute_the_same() {
    let Some(python) = python() else { return };
    for name in MECHANISMS {
        compare(&python, &mechanism(name), &[("K", 4), ("V", 3), ("N", 2), ("R", 2)], -0.9, 0.9);
    }
}

#[test]
fn every_function_and_layout_prints_as_something_that_computes_the_same() {
    let Some(python) = python() else { return };
    let program = program(EVERYTHING);
    compare(&python, &program, &[("K", 3), ("V", 4), ("L", 3), ("H", 2)], 0.1, 0.9);
}
