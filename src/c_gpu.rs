//! What a C programmer gets of kernels for GPUs: their part of a header, and the source that becomes the library's.
//! In: recurrences compiled for families of GPUs, machine code where an assembler made some; out: text, and the files it
//! takes in. The library needs the driver only, and finds it when it is first used.

use std::fmt::Write;

use chunkwise_abi::gpu::{GpuKernel, GpuModule, GpuRecurrence, Grid, MAX_CALL_BYTES, call_bytes};
use chunkwise_abi::{Access, ArgSignature, KernelSignature, Role, Signature};
use chunkwise_dsl::program::Program;
use chunkwise_runtime::cuda::assemble::Assembler;

use crate::c_interface::{self, CONTRACT};
use crate::failure::Failure;

/// A family's code for one direction, by the symbol of the direction.
pub struct Image {
    /// The module.
    pub module: GpuModule,
    /// Machine code, where there is some.
    pub cubin: Option<Vec<u8>>,
}

/// One direction of a recurrence, for several families, the most special first.
pub struct Function {
    /// What it takes.
    pub signature: KernelSignature,
    /// Its code.
    pub images: Vec<Image>,
}

/// Kernels of one direction, as `MAX_KERNELS` in the source says.
const MAX_KERNELS: usize = 16;

/// A recurrence's code for every family, by direction, with machine code where there is an assembler.
pub fn functions(made: &[GpuRecurrence], assembler: Option<&Assembler>) -> Result<Vec<Function>, Failure> {
    let mut functions: Vec<Function> = Vec::new();
    for module in made.iter().flat_map(|it| [&it.forward, &it.forward_saving, &it.backward]).flatten() {
        let symbol = &module.signature.symbol;
        let n_tensors = module.signature.args.len() + module.temporaries.len();
        if call_bytes(n_tensors) > MAX_CALL_BYTES || module.kernels.len() > MAX_KERNELS {
            return Err(Failure::Ours(format!("`{symbol}` has too many tensors or kernels for a library")));
        }
        let assembled = assembler.map(|assembler| assembler.assemble(&module.ptx, &module.arch)).transpose();
        let assembled = assembled.map_err(|error| Failure::Ours(format!("`{symbol}`: {error}")))?;
        let image = Image { module: module.clone(), cubin: assembled.map(|assembled| assembled.cubin) };
        match functions.iter_mut().find(|it| it.signature.symbol == module.signature.symbol) {
            Some(function) => function.images.push(image),
            None => functions.push(Function { signature: module.signature.clone(), images: vec![image] }),
        }
    }
    for function in &mut functions {
        // Code for one GPU alone before code that it shares with others, newer before older.
        function.images.sort_by_key(|image| std::cmp::Reverse(capability(&image.module.arch)));
    }
    Ok(functions)
}

/// The header of a library with code for GPUs alone.
pub fn header(name: &str, signatures: &[&Signature]) -> String {
    let guard = format!("{}_H", name.to_uppercase());
    let mut text =
        format!("/* {name}: made by chunkwise {}. */\n#ifndef {guard}\n#define {guard}\n\n", env!("CARGO_PKG_VERSION"));
    text.push_str("#include <stddef.h>\n#include <stdint.h>\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n");
    text.push_str(CONTRACT);
    text.push_str(GPU_CONTRACT);
    for signature in signatures {
        for kernel in c_interface::kernels(signature) {
            let (symbol, limit) =
                (&kernel.symbol, signature.max_length.map_or(String::new(), |most| format!(", at most {most} tokens")));
            line(&mut text, format_args!("\n/* {}, {} form{limit}. Tensors:", signature.name, signature.form));
            for (number, arg) in kernel.args.iter().enumerate() {
                line(&mut text, format_args!("     {number}  {}", c_interface::described(arg)));
            }
            line(&mut text, format_args!("*/\n#define {}_TENSORS {}", symbol.to_uppercase(), kernel.args.len()));
            line(
                &mut text,
                format_args!("int {symbol}_gpu(const cw_gpu_call *call, void *stream, void *workspace, size_t bytes);"),
            );
            line(&mut text, format_args!("size_t {symbol}_gpu_workspace(const cw_gpu_call *call);"));
        }
    }
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n");
    text
}

const GPU_CONTRACT: &str = "
/* A call on a GPU: as cw_call, with every address in the GPU's memory but that of `tensors` itself. */
#ifndef CHUNKWISE_GPU
#define CHUNKWISE_GPU
typedef struct cw_gpu_call {
    const cw_tensor *tensors; /* in the order that each function names */
    const int64_t *offsets;   /* NULL, or sequences + 1 ascending token offsets in the GPU's memory */
    int64_t sequences;        /* B */
    int64_t length;           /* T; with offsets, tokens of the longest sequence */
    int64_t heads;            /* H */
    int64_t total;            /* with offsets, tokens of all sequences; else ignored */
} cw_gpu_call;

enum {
    CW_GPU_NO_DRIVER = -1,
    CW_GPU_NO_CONTEXT = -2,
    CW_GPU_UNSUITABLE = -3,
    CW_GPU_WORKSPACE = -4,
    CW_GPU_TOO_LARGE = -5,
    CW_GPU_NO_MEMORY = -6,
    CW_GPU_MISALIGNED = -7
};

/* A code in words: one of the above, or the driver's own. */
const char *cw_gpu_error(int code);
#endif

/* Every function queues its kernels on a stream (CUstream or cudaStream_t; NULL for the default one) of the context
   that is current in the calling thread, waits for nothing, and gives 0 or a code. `workspace` is memory of the GPU,
   aligned to 256 bytes, of at least as many bytes as NAME_gpu_workspace says for the call; it may be used again for the
   next call on the same stream. The first call in a context loads the code. A tensor begins at an address, and has
   strides, that are multiples of 16 bytes, or of the largest power of two that divides the bytes of its dimensions after
   the head; memory from an allocator does. */
";

/// The source of the library; `numbered` tells the files it takes in, which lie beside it.
pub fn source(name: &str, functions: &[Function]) -> (String, Vec<(String, Vec<u8>)>) {
    let mut text = format!("#include \"{name}.h\"\n{}", include_str!("c_gpu.c"));
    let mut files = Vec::new();
    for function in functions {
        let symbol = &function.signature.symbol;
        for image in &function.images {
            let arch = &image.module.arch;
            let mut take_in = |what: &str, bytes: Vec<u8>| {
                let file = format!("{}.{what}", files.len());
                let label = format!("{symbol}_{arch}_{what}");
                // A zero at the end closes the text of PTX.
                line(
                    &mut text,
                    format_args!(
                        "\n__asm__(\".section .rodata\\n.balign 64\\n.global {label}\\n{label}:\\n.incbin \\\"{file}\\\"\\n\
                         .byte 0\\n.previous\\n\");\nextern const char {label}[];"
                    ),
                );
                files.push((file, bytes));
            };
            take_in("ptx", image.module.ptx.clone().into_bytes());
            if let Some(cubin) = &image.cubin {
                take_in("cubin", cubin.clone());
            }
            tables(&mut text, symbol, image);
        }
        let images = function.images.iter().map(|image| {
            let GpuModule { arch, kernels, temporaries, .. } = &image.module;
            let (major, minor, only_there) = numbers(arch);
            let cubin = match image.cubin {
                Some(_) => format!("(const unsigned char *){symbol}_{arch}_cubin"),
                None => "NULL".to_owned(),
            };
            format!(
                "    {{{major}, {minor}, {}, {symbol}_{arch}_ptx, {cubin}, {symbol}_{arch}_kernels, {}, \
                 {symbol}_{arch}_temporaries, {}}},\n",
                u8::from(only_there),
                kernels.len(),
                temporaries.len()
            )
        });
        let operands = function
            .signature
            .args
            .iter()
            .map(|arg| format!("    {{{}, {}, {}}},\n", role(arg.role).0, arg.alignment(), arg.dtype.bytes()));
        // C has no empty arrays.
        let operands: String = operands.chain(["    {0, 1, 1},\n".to_owned()]).collect();
        let (n_images, n_tensors) = (function.images.len(), function.signature.args.len());
        line(
            &mut text,
            format_args!(
                "\nstatic const struct operand {symbol}_operands[] = {{\n{operands}}};\nstatic const struct image \
                 {symbol}_images[] = {{\n{}}};\nstatic struct module {symbol}_module = {{{symbol}_images, {n_images}, \
                 {n_tensors}, {symbol}_operands, NULL}};\n\nint {symbol}_gpu(const cw_gpu_call *call, void \
                 *stream, void *workspace, size_t bytes) {{\n    return launch(&{symbol}_module, call, stream, \
                 workspace, bytes);\n}}\n\nsize_t {symbol}_gpu_workspace(const cw_gpu_call *call) {{\n    return \
                 workspace_size(&{symbol}_module, call);\n}}",
                images.collect::<String>()
            ),
        );
    }
    (text, files)
}

/// Kernels and temporaries of an image.
fn tables(text: &mut String, symbol: &str, image: &Image) {
    let GpuModule { arch, kernels, temporaries, .. } = &image.module;
    line(text, format_args!("static const struct kernel {symbol}_{arch}_kernels[] = {{"));
    for GpuKernel { symbol, threads, shared_bytes, workspace_bytes, grid } in kernels {
        let (chunk, parts) = match grid {
            Grid::Item => (0, 0),
            Grid::Chunk { tokens } => (*tokens, 0),
            Grid::Blocks { blocks } => (0, *blocks),
            Grid::Spans { tokens, blocks } => (*tokens, *blocks),
        };
        line(
            text,
            format_args!("    {{\"{symbol}\", {threads}, {shared_bytes}, {workspace_bytes}ull, {chunk}, {parts}}},"),
        );
    }
    line(text, format_args!("}};\nstatic const struct temporary {symbol}_{arch}_temporaries[] = {{"));
    for ArgSignature { role: own, inner, dtype, .. } in temporaries {
        let (role, chunk) = role(*own);
        let inner: usize = inner.iter().product();
        line(text, format_args!("    {{{role}, {chunk}, {inner}, {}}},", dtype.bytes()));
    }
    // C has no empty arrays.
    line(text, format_args!("    {{0, 1, 0, 0}},\n}};"));
}

/// The number of a role in the source, and its tokens a chunk.
fn role(role: Role) -> (u32, usize) {
    match role {
        Role::Token => (0, 1),
        Role::Head => (1, 1),
        Role::Sequence => (2, 1),
        Role::Chunk(chunk) => (3, chunk),
    }
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    text.write_fmt(line).expect("writing to a string does not fail");
    text.push('\n');
}

/// Major and minor compute capability of an architecture, and whether its code runs on that alone.
fn numbers(arch: &str) -> (u32, u32, bool) {
    let digits = arch.trim_start_matches("sm_");
    let number: u32 = digits.trim_end_matches('a').parse().unwrap_or(0);
    (number / 10, number % 10, digits.ends_with('a'))
}

/// What images are ordered by.
fn capability(arch: &str) -> (bool, u32, u32) {
    let (major, minor, only_there) = numbers(arch);
    (only_there, major, minor)
}

const GPU_EXAMPLE: &str = r#"
static int (*copy_to)(uint64_t, const void *, size_t);
static int (*copy_from)(void *, uint64_t, size_t);
static int (*allocate)(uint64_t *, size_t);

static void well(int code) {
    if (code) { fprintf(stderr, "%s\n", cw_gpu_error(code)); exit(1); }
}

static void *in_driver(const char *name) {
    static void *library;
    if (!library) library = dlopen("libcuda.so.1", RTLD_NOW);
    void *function = library ? dlsym(library, name) : NULL;
    if (!function) well(CW_GPU_NO_DRIVER);
    return function;
}

static void first_gpu(void) {
    int device;
    void *context;
    well(((int (*)(unsigned))in_driver("cuInit"))(0));
    well(((int (*)(int *, int))in_driver("cuDeviceGet"))(&device, 0));
    well(((int (*)(void **, int))in_driver("cuDevicePrimaryCtxRetain"))(&context, device));
    well(((int (*)(void *))in_driver("cuCtxSetCurrent"))(context));
    allocate = (int (*)(uint64_t *, size_t))in_driver("cuMemAlloc_v2");
    copy_to = (int (*)(uint64_t, const void *, size_t))in_driver("cuMemcpyHtoD_v2");
    copy_from = (int (*)(void *, uint64_t, size_t))in_driver("cuMemcpyDtoH_v2");
}

static void *gpu_memory(size_t bytes) {
    uint64_t address = 0;
    if (bytes) well(allocate(&address, bytes));
    return (void *)(uintptr_t)address;
}
"#;

/// A program that calls every function once, and prints what the example of a library for processors prints.
pub fn example(name: &str, signatures: &[&Signature], programs: &[&Program]) -> String {
    let mut text = format!(
        "/* Calls every function of {name}.h once and prints what it writes.\n   cc -O2 example.c -L. -l{name} \
         -Wl,-rpath,'$ORIGIN' -lm -ldl -o example */\n#include <dlfcn.h>\n#include <math.h>\n#include <stdio.h>\n#include \
         <stdlib.h>\n#include <string.h>\n#include \"{name}.h\"\n"
    );
    text.push_str(c_interface::EXAMPLE);
    text.push_str(GPU_EXAMPLE);
    for (signature, program) in signatures.iter().zip(programs) {
        example_of(&mut text, signature, program);
    }
    text.push_str("\nint main(void) {\n    first_gpu();\n");
    for signature in signatures {
        line(&mut text, format_args!("    {}();", signature.name));
    }
    text.push_str("    return 0;\n}\n");
    text
}

fn example_of(text: &mut String, signature: &Signature, program: &Program) {
    line(text, format_args!("\nstatic void {}(void) {{", signature.name));
    let mut made: Vec<&ArgSignature> = Vec::new();
    for arg in c_interface::kernels(signature).flat_map(|kernel| &kernel.args) {
        if made.iter().any(|known| known.name == arg.name) {
            continue;
        }
        let (it, count, kind) = (c_interface::variable(arg), c_interface::count(arg), c_interface::kind(arg.dtype));
        line(text, format_args!("    /* {} */", c_interface::described(arg)));
        line(text, format_args!("    size_t n_{it} = {count}, bytes_{it} = n_{it} * {};", arg.dtype.bytes()));
        line(text, format_args!("    void *{it} = memory(bytes_{it}), *gpu_{it} = gpu_memory(bytes_{it});"));
        if arg.access == Access::Read && !arg.name.starts_with("saved.") {
            let (base, scale) = c_interface::filling(program, &arg.name);
            line(text, format_args!("    fill({it}, n_{it}, {kind}, {base:?}, {scale:?}, {}.0);", made.len()));
            line(text, format_args!("    well(copy_to((uint64_t)(uintptr_t)gpu_{it}, {it}, bytes_{it}));"));
        }
        made.push(arg);
    }
    for kernel in c_interface::kernels(signature) {
        text.push_str("    {\n        const cw_tensor tensors[] = {\n");
        for arg in &kernel.args {
            let [sequence, time, head] = c_interface::strides(arg);
            line(
                text,
                format_args!("            {{gpu_{}, {sequence}, {time}, {head}, H}},", c_interface::variable(arg)),
            );
        }
        let symbol = &kernel.symbol;
        text.push_str("        };\n        const cw_gpu_call call = {tensors, NULL, B, T, H, 0};\n");
        line(text, format_args!("        size_t bytes = {symbol}_gpu_workspace(&call);"));
        line(text, format_args!("        well({symbol}_gpu(&call, NULL, gpu_memory(bytes), bytes));"));
        for arg in kernel.args.iter().filter(|arg| arg.access == Access::Write && !arg.name.starts_with("saved.")) {
            let (it, kind) = (c_interface::variable(arg), c_interface::kind(arg.dtype));
            line(text, format_args!("        well(copy_from({it}, (uint64_t)(uintptr_t)gpu_{it}, bytes_{it}));"));
            line(text, format_args!("        say(\"{}.{}\", {it}, n_{it}, {kind});", signature.name, arg.name));
        }
        text.push_str("    }\n");
    }
    for arg in &made {
        line(text, format_args!("    free({});", c_interface::variable(arg)));
    }
    text.push_str("}\n");
}

/// A Makefile for the example.
pub fn makefile(name: &str) -> String {
    c_interface::makefile(name).replace(" -lm ", " -lm -ldl ")
}
