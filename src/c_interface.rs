//! What a C programmer gets beside a library: a header, an example, a Makefile. In: the manifest of the library and
//! the programs it was made from; out: text. The example fills every tensor with numbers inside its declared range,
//! calls every function and prints the sum of everything written.

use std::fmt::Write;

use chunkwise_abi::{Access, ArgSignature, DType, KernelSignature, Manifest, Role, Signature};
use chunkwise_dsl::program::{Program, Range};

/// What a tensor and a call are.
pub(crate) const CONTRACT: &str = "\
/* A tensor. Strides are in elements; the dimensions after the head are contiguous, the last varies fastest.
   Element (sequence n, token t, head h) begins at
       data + n*stride_sequence + t*stride_time + (h / (H / heads))*stride_head
   With packed sequences (offsets not NULL) it begins at data + (offsets[n] + t)*stride_time + ... instead.
   Tensors without a token or a sequence leave out that part. */
#ifndef CHUNKWISE_TENSOR
#define CHUNKWISE_TENSOR
typedef struct cw_tensor {
    void *data;
    int64_t stride_sequence;
    int64_t stride_time;
    int64_t stride_head;
    int64_t heads; /* divides the heads of the call */
} cw_tensor;

/* A call. */
typedef struct cw_call {
    const cw_tensor *tensors; /* in the order that each function names */
    const int64_t *offsets;   /* NULL, or sequences + 1 ascending token offsets */
    int64_t sequences;        /* B */
    int64_t length;           /* T; ignored with offsets */
    int64_t heads;            /* H */
} cw_call;
#endif
";

const ITEMS: &str = "
/* Every function works on items begin <= i < end: head i % H of sequence i / H. Items do not depend on each other,
   so threads may share them out, each with scratch memory of its own, aligned to 64 bytes. */
";

/// The header.
pub fn header(name: &str, manifest: &Manifest) -> String {
    let guard = format!("{}_H", name.to_uppercase());
    let mut text =
        format!("/* {name}: made by chunkwise {}. */\n#ifndef {guard}\n#define {guard}\n\n", env!("CARGO_PKG_VERSION"));
    text.push_str("#include <stdint.h>\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n");
    text.push_str(CONTRACT);
    text.push_str(ITEMS);
    for signature in &manifest.recurrences {
        for kernel in kernels(signature) {
            text.push('\n');
            function(&mut text, signature, kernel);
        }
    }
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n");
    text
}

pub(crate) fn kernels(signature: &Signature) -> impl Iterator<Item = &KernelSignature> {
    [&signature.forward, &signature.forward_saving, &signature.backward].into_iter().flatten()
}

/// A function with its arguments as a comment, its scratch, and the number of its tensors.
fn function(text: &mut String, signature: &Signature, kernel: &KernelSignature) {
    let line = |text: &mut String, line: std::fmt::Arguments| {
        text.write_fmt(line).expect("writing to a string does not fail");
        text.push('\n');
    };
    let limit = signature.max_length.map_or(String::new(), |limit| format!(", at most {limit} tokens"));
    line(text, format_args!("/* {}, {} form{limit}. Tensors:", signature.name, signature.form));
    for (number, arg) in kernel.args.iter().enumerate() {
        line(text, format_args!("     {number}  {}", described(arg)));
    }
    line(text, format_args!("*/"));
    line(
        text,
        format_args!("#define {}_SCRATCH {} /* bytes a thread */", kernel.symbol.to_uppercase(), kernel.scratch_bytes),
    );
    line(text, format_args!("#define {}_TENSORS {}", kernel.symbol.to_uppercase(), kernel.args.len()));
    line(text, format_args!("void {}(const cw_call *call, int64_t begin, int64_t end, void *scratch);", kernel.symbol));
}

/// `read     q          f32  [B, T, H, K=64]`
pub(crate) fn described(arg: &ArgSignature) -> String {
    let leading = match arg.role {
        Role::Token => "B, T, H".to_owned(),
        Role::Head => "H".to_owned(),
        Role::Sequence => "B, H".to_owned(),
        Role::Chunk(chunk) => format!("B*T/{chunk} + B, H"),
    };
    let inner: String = arg.axes.iter().zip(&arg.inner).map(|(axis, size)| format!(", {axis}={size}")).collect();
    let access = match arg.access {
        Access::Read => "read   ",
        Access::Write => "written",
    };
    format!("{access}  {:<16} {:<4}  [{leading}{inner}]", arg.name, arg.dtype.name())
}

/// What every example has: sizes, memory, numbers.
pub(crate) const EXAMPLE: &str = r#"
enum { B = 2, T = 70, H = 3 };

static void *memory(size_t bytes) {
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!data) { fputs("no memory\n", stderr); exit(1); }
    memset(data, 0, bytes);
    return data;
}

static void put(void *data, size_t i, int type, double value) {
    if (type == 0) { ((float *)data)[i] = (float)value; return; }
    if (type == 2) { ((_Float16 *)data)[i] = (_Float16)value; return; }
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static double get(const void *data, size_t i, int type) {
    if (type == 0) return ((const float *)data)[i];
    if (type == 2) return (double)((const _Float16 *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float single;
    memcpy(&single, &bits, 4);
    return single;
}

/* Element i of a tensor: base + scale * sin(0.7 i + phase). */
static void fill(void *data, size_t n, int type, double base, double scale, double phase) {
    for (size_t i = 0; i < n; i++) put(data, i, type, base + scale * sin(0.7 * (double)i + phase));
}

static void say(const char *name, const void *data, size_t n, int type) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        double value = get(data, i, type);
        sum += value;
        squares += value * value;
    }
    printf("%s sum %.9g norm %.9g\n", name, sum, sqrt(squares));
}
"#;

/// The example.
pub fn example(name: &str, manifest: &Manifest, programs: &[&Program]) -> String {
    let mut text = format!(
        "/* Calls every function of {name}.h once and prints what it writes.\n   cc -O2 example.c -L. -l{name} \
         -Wl,-rpath,'$ORIGIN' -lm -o example */\n#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include \
         <string.h>\n#include \"{name}.h\"\n"
    );
    text.push_str(EXAMPLE);
    for (signature, program) in manifest.recurrences.iter().zip(programs) {
        text.push_str(&example_of(signature, program));
    }
    text.push_str("\nint main(void) {\n");
    for signature in &manifest.recurrences {
        text.push_str(&format!("    {}();\n", signature.name));
    }
    text.push_str("    return 0;\n}\n");
    text
}

fn example_of(signature: &Signature, program: &Program) -> String {
    let mut text = format!("\nstatic void {}(void) {{\n", signature.name);
    let mut made: Vec<&ArgSignature> = Vec::new();
    for arg in kernels(signature).flat_map(|kernel| &kernel.args) {
        if made.iter().any(|known| known.name == arg.name) {
            continue;
        }
        let (variable, count, kind) = (variable(arg), count(arg), kind(arg.dtype));
        text.push_str(&format!("    /* {} */\n", described(arg)));
        text.push_str(&format!("    size_t n_{variable} = {count};\n"));
        text.push_str(&format!("    void *{variable} = memory(n_{variable} * {});\n", arg.dtype.bytes()));
        if arg.access == Access::Read && !arg.name.starts_with("saved.") {
            let (base, scale) = filling(program, &arg.name);
            let phase = made.len();
            text.push_str(&format!("    fill({variable}, n_{variable}, {kind}, {base:?}, {scale:?}, {phase}.0);\n"));
        }
        made.push(arg);
    }
    for kernel in kernels(signature) {
        text.push_str("    {\n        const cw_tensor tensors[] = {\n");
        for arg in &kernel.args {
            let [sequence, time, head] = strides(arg);
            text.push_str(&format!("            {{{}, {sequence}, {time}, {head}, H}},\n", variable(arg)));
        }
        text.push_str("        };\n        const cw_call call = {tensors, NULL, B, T, H};\n");
        text.push_str(&format!("        void *scratch = memory({}_SCRATCH);\n", kernel.symbol.to_uppercase()));
        text.push_str(&format!("        {}(&call, 0, B * H, scratch);\n        free(scratch);\n", kernel.symbol));
        for arg in kernel.args.iter().filter(|arg| arg.access == Access::Write && !arg.name.starts_with("saved.")) {
            let (name, variable, kind) = (&arg.name, variable(arg), kind(arg.dtype));
            let label = format!("{}.{name}", signature.name);
            text.push_str(&format!("        say(\"{label}\", {variable}, n_{variable}, {kind});\n"));
        }
        text.push_str("    }\n");
    }
    for arg in &made {
        text.push_str(&format!("    free({});\n", variable(arg)));
    }
    text.push_str("}\n");
    text
}

/// Where the example's numbers for a tensor lie, inside the range that is declared: base ± scale.
pub fn filling(program: &Program, name: &str) -> (f64, f64) {
    let range = program.tensors.iter().find(|tensor| tensor.name == name).map_or(&Range::Any, |it| &it.range);
    match range {
        Range::Any => (0.0, 0.5),
        // Short enough for any axis that one would choose, so that the norm stays below one.
        Range::Unit(_) => (0.0, 0.05),
        Range::Interval { lo, hi, .. } => match (lo.is_finite(), hi.is_finite()) {
            (true, true) => (0.5 * (lo + hi), 0.4 * (hi - lo)),
            (false, true) => (hi - 0.2, 0.1),
            (true, false) => (lo + 0.2, 0.1),
            (false, false) => (0.0, 0.5),
        },
    }
}

pub(crate) fn variable(arg: &ArgSignature) -> String {
    arg.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_") + "_"
}

pub(crate) fn kind(dtype: DType) -> u8 {
    match dtype {
        DType::F32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
    }
}

/// Elements of a tensor of the example, as C.
pub(crate) fn count(arg: &ArgSignature) -> String {
    let inner: usize = arg.inner.iter().product();
    match arg.role {
        Role::Token => format!("(size_t)B * T * H * {inner}"),
        Role::Head => format!("(size_t)H * {inner}"),
        Role::Sequence => format!("(size_t)B * H * {inner}"),
        Role::Chunk(chunk) => format!("((size_t)B * T / {chunk} + B) * H * {inner}"),
    }
}

/// Strides over sequences, time and heads, as C.
pub(crate) fn strides(arg: &ArgSignature) -> [String; 3] {
    let inner: usize = arg.inner.iter().product();
    let zero = || "0".to_owned();
    match arg.role {
        Role::Token => [format!("T * H * {inner}"), format!("H * {inner}"), inner.to_string()],
        Role::Head => [zero(), zero(), inner.to_string()],
        Role::Sequence => [format!("H * {inner}"), zero(), inner.to_string()],
        Role::Chunk(_) => [zero(), format!("H * {inner}"), inner.to_string()],
    }
}

/// A Makefile for the example.
pub fn makefile(name: &str) -> String {
    format!(
        "example: example.c {name}.h lib{name}.so\n\t$(CC) -O2 example.c -L. -l{name} -Wl,-rpath,'$$ORIGIN' -lm -o $@\n"
    )
}
