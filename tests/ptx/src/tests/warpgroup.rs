//! Products of a warpgroup: against a plain sum, and with everything left out that they need.

use crate::{Fault, Launch, Memory, Module, NOT_A_NUMBER, run};
use half::bf16;

/// How far it is from one core matrix to the next: sixteen bytes more than it has.
const CORE: usize = 144;
/// Bytes that a warpgroup copies in one go.
const GO: usize = 2048;
/// Where the words of a thread's left factor are in the input, and its sums in the output, as addresses.
const BEGIN: &str = "mov.u32 %r1, %tid.x;\n and.b32 %r2, %r1, 127;\n mul.wide.u32 %rd3, %r2, 16;\n \
                     add.s64 %rd4, %rd1, %rd3;\n mov.b64 %rd5, shared;\n add.s64 %rd6, %rd5, %rd3;\n \
                     mul.wide.u32 %rd7, %r1, 512;\n add.s64 %rd8, %rd2, %rd7;";
/// What stands between writing the factors and the product.
const ORDER: &str = "fence.proxy.async.shared::cta;\n bar.sync 0;\n wgmma.fence.sync.aligned;";
const WAIT: &str = "wgmma.commit_group.sync.aligned;\n wgmma.wait_group.sync.aligned 0;";

/// A product of 64 rows.
#[derive(Clone, Copy)]
struct Trial {
    columns: usize,
    left_transposed: bool,
    right_transposed: bool,
    in_registers: bool,
    threads: u32,
    /// Bytes of shared memory beyond the factors.
    more: usize,
}

const TRIAL: Trial =
    Trial { columns: 64, left_transposed: false, right_transposed: true, in_registers: false, threads: 128, more: 0 };

fn left(row: usize, k: usize) -> f32 {
    ((5 * row + 3 * k + row * k) % 13) as f32 - 6.0
}

fn right(k: usize, column: usize) -> f32 {
    ((7 * column + k + column * k) % 11) as f32 - 4.0
}

/// Puts an element of a factor where core matrices have it; `side` counts rows or columns.
fn place(image: &mut [u8], begin: usize, side: usize, k: usize, transposed: bool, value: f32) {
    let core = begin + CORE * (2 * (side / 8) + k / 8);
    let (row, column) = if transposed { (k % 8, side % 8) } else { (side % 8, k % 8) };
    let at = core + 16 * row + 2 * column;
    image[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
}

impl Trial {
    fn right_at(self) -> usize {
        16 * CORE
    }

    fn shared_bytes(self) -> usize {
        (self.right_at() + self.columns / 4 * CORE).next_multiple_of(GO)
    }

    /// Both factors as they are to lie in shared memory, and then the left one as threads hold it.
    fn input(self) -> Vec<u8> {
        let mut image = vec![0; self.shared_bytes()];
        for k in 0..16 {
            (0..64).for_each(|row| place(&mut image, 0, row, k, self.left_transposed, left(row, k)));
            for column in 0..self.columns {
                place(&mut image, self.right_at(), column, k, self.right_transposed, right(k, column));
            }
        }
        for thread in 0..128 {
            for (word, half) in (0..4).flat_map(|word| [(word, 0), (word, 1)]) {
                let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (word % 2);
                let k = 2 * (thread % 4) + 8 * (word / 2) + half;
                image.extend(bf16::from_f32(left(row, k)).to_le_bytes());
            }
        }
        image
    }

    fn descriptor(begin: usize) -> u64 {
        let field = |bytes: usize| bytes as u64 >> 4;
        field(0x400 + begin) | field(CORE) << 16 | field(2 * CORE) << 32
    }

    /// Writes both factors to shared memory.
    fn copies(self) -> String {
        let copy = |go: usize| {
            let (at, registers) = (go * GO, "{%r3, %r4, %r5, %r6}");
            format!("ld.global.v4.b32 {registers}, [%rd4+{at}];\n st.shared.v4.b32 [%rd6+{at}], {registers};")
        };
        (0..self.shared_bytes() / GO).map(copy).collect::<Vec<_>>().join("\n")
    }

    fn sums(self) -> Vec<String> {
        (1..=self.columns / 2).map(|at| format!("%f{at}")).collect()
    }

    /// Gives every sum the value 10, and reads the left factor and the descriptors.
    fn begin(self) -> String {
        let tens = self.sums().iter().map(|sum| format!("mov.b32 {sum}, 0f41200000;\n")).collect::<String>();
        let (at, a, b) = (self.shared_bytes(), Trial::descriptor(0), Trial::descriptor(self.right_at()));
        format!(
            "{tens} ld.global.v4.b32 {{%r11, %r12, %r13, %r14}}, [%rd4+{at}];\n \
             mov.b64 %rd11, {a};\n mov.b64 %rd12, {b};"
        )
    }

    /// The product, with what stands for adding and signs.
    fn product(self, scales: &str) -> String {
        let Trial { columns, left_transposed, right_transposed, in_registers, .. } = self;
        let (a, flags) = match in_registers {
            true => ("{%r11, %r12, %r13, %r14}", format!("{}", u8::from(right_transposed))),
            false => ("%rd11", format!("{}, {}", u8::from(left_transposed), u8::from(right_transposed))),
        };
        let sums = self.sums().join(", ");
        format!(
            "// begin inline asm\n wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}}, {a}, %rd12, \
             {scales}, {flags};\n // end inline asm"
        )
    }

    fn stores(self) -> String {
        self.sums().iter().enumerate().map(|(at, sum)| format!("st.global.b32 [%rd8+{}], {sum};\n", 4 * at)).collect()
    }

    fn whole(self) -> String {
        format!("{}\n{}\n{ORDER}\n{}\n{WAIT}\n{}", self.copies(), self.begin(), self.product("1, 1, 1"), self.stores())
    }

    /// Runs a kernel: 128 floats of every thread.
    fn run(self, body: &str) -> Result<Vec<f32>, Fault> {
        let text = format!(
            ".visible .entry kernel(\n\t.param .align 8 .b8 p[16]\n)\n{{\n\tld.param.b64 %rd1, [p];\n\
             \tld.param.b64 %rd2, [p+8];\n{BEGIN}\n{body}\n\tret;\n}}\n"
        );
        let module = Module::parse(&text).expect("it is well formed");
        let mut memory = Memory::new();
        let input = memory.add("in", self.input().len(), 16, Some(&self.input()));
        let output = memory.add("out", 512 * self.threads as usize, 16, None);
        let parameter: Vec<u8> = [input, output].iter().flat_map(|it| memory.address(*it).to_le_bytes()).collect();
        let launch = Launch {
            kernel: module.kernel("kernel").expect("it is there"),
            blocks: [1; 3],
            threads: self.threads,
            shared_bytes: (self.shared_bytes() + self.more) as u32,
            unwritten: NOT_A_NUMBER,
            parameter: &parameter,
        };
        run(&launch, &memory, 1)?;
        let bytes = memory.bytes(output);
        Ok(bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect())
    }

    fn fault(self, body: &str) -> String {
        self.run(body).expect_err("something is wrong with it").to_string()
    }

    /// Checks that sums are `begin` and the product `times` over.
    fn check(self, body: &str, begin: f32, times: f32) {
        let sums = self.run(body).unwrap();
        for (row, column) in (0..64).flat_map(|row| (0..self.columns).map(move |column| (row, column))) {
            let expected = (0..16).map(|k| left(row, k) * right(k, column)).sum::<f32>() * times + begin;
            let thread = 32 * (row / 16) + 4 * (row % 8) + column % 8 / 2;
            let sum = sums[128 * thread + 4 * (column / 8) + 2 * (row % 16 / 8) + column % 2];
            assert_eq!(sum, expected, "row {row}, column {column}");
        }
    }

    fn refused(self, from: &str, to: &str, why: &str) {
        let whole = self.whole();
        assert!(whole.contains(from), "{from}");
        let fault = self.fault(&whole.replace(from, to));
        assert!(fault.contains(why), "{fault}");
    }
}

#[test]
fn products_are_what_a_plain_sum_is() {
    for (left_transposed, right_transposed) in [(false, true), (false, false), (true, true), (true, false)] {
        for columns in [8, 64, 256] {
            let trial = Trial { columns, left_transposed, right_transposed, ..TRIAL };
            trial.check(&trial.whole(), 10.0, 1.0);
            let trial = Trial { left_transposed: false, in_registers: true, ..trial };
            trial.check(&trial.whole(), 10.0, 1.0);
        }
    }
}

#[test]
fn products_are_added_or_not_and_with_either_sign() {
    let scaled = |trial: Trial, scales: &str| trial.whole().replace("1, 1, 1", scales);
    let registers = Trial { in_registers: true, ..TRIAL };
    for trial in [TRIAL, registers] {
        trial.check(&scaled(trial, "0, 1, 1"), 0.0, 1.0);
        trial.check(&scaled(trial, "1, -1, 1"), 10.0, -1.0);
        trial.check(&scaled(trial, "1, 1, -1"), 10.0, -1.0);
        trial.check(&scaled(trial, "0, -1, -1"), 0.0, 1.0);
        let by_predicate = |relation: &str| {
            scaled(trial, "%p1, 1, 1").replace(ORDER, &format!("setp.{relation}.u32 %p1, %r1, 1000;\n {ORDER}"))
        };
        trial.check(&by_predicate("lt"), 10.0, 1.0);
        trial.check(&by_predicate("gt"), 0.0, 1.0);
    }
    let some = scaled(TRIAL, "%p1, 1, 1").replace(ORDER, &format!("setp.lt.u32 %p1, %r1, 7;\n {ORDER}"));
    assert!(TRIAL.fault(&some).contains("some threads add the product"));
    // Several, one after the other, in one group and in two.
    let product = TRIAL.product("1, 1, 1");
    TRIAL.check(&TRIAL.whole().replace(&product, &format!("{product}\n{product}")), 10.0, 2.0);
    let two = format!("{product}\n wgmma.commit_group.sync.aligned;\n{product}");
    TRIAL.check(&TRIAL.whole().replace(&product, &two), 10.0, 2.0);
}

#[test]
fn what_a_product_reads_lies_before_a_fence_and_a_barrier() {
    let invisible = "wgmma reads shared memory that no fence.proxy.async made visible";
    for trial in [TRIAL, Trial { in_registers: true, ..TRIAL }] {
        trial.check(&trial.whole().replace(".shared::cta", ""), 10.0, 1.0);
        trial.refused("fence.proxy.async.shared::cta;\n", "", invisible);
        trial.refused("bar.sync 0;", "", "wrote it since the last barrier");
        // Fences of others, too early or too late.
        let late = "bar.sync 0;\n fence.proxy.async.shared::cta;";
        trial.check(&trial.whole().replace("fence.proxy.async.shared::cta;\n bar.sync 0;", late), 10.0, 1.0);
        // Past the barrier all warps that read have to fence.
        let not_all = "setp.lt.u32 %p1, %r1, 96;\n bar.sync 0;\n @%p1 fence.proxy.async.shared::cta;";
        trial.refused("fence.proxy.async.shared::cta;\n bar.sync 0;", not_all, invisible);
        let before = "bar.sync 0;\n fence.proxy.async;\n st.shared.b32 [%rd6+2048], %r3;\n bar.sync 0;";
        trial.refused("fence.proxy.async.shared::cta;\n bar.sync 0;", before, invisible);
        let own = "setp.lt.u32 %p1, %r1, 32;\n @!%p1 fence.proxy.async;\n bar.sync 0;\n @%p1 fence.proxy.async;";
        trial.refused("fence.proxy.async.shared::cta;\n bar.sync 0;", own, invisible);
        let some = "setp.ne.u32 %p1, %r1, 77;\n @%p1 fence.proxy.async.shared::cta;";
        trial.refused("fence.proxy.async.shared::cta;", some, "thread 13 of warp 2 wrote");
        let again = "fence.proxy.async.shared::cta;\n st.shared.b32 [%rd6+2048], %r3;\n bar.sync 0;";
        trial.refused("fence.proxy.async.shared::cta;\n bar.sync 0;", again, invisible);
        // The barrier need not be the one after what was written.
        let twice = "bar.sync 0;\n fence.proxy.async.shared::cta;\n bar.sync 0;";
        let whole = trial.whole();
        trial.check(&whole.replace("fence.proxy.async.shared::cta;\n bar.sync 0;", twice), 10.0, 1.0);
    }
}

#[test]
fn copies_are_fenced_off_after_they_arrived() {
    let copy = |go: usize| format!("cp.async.cg.shared.global [%rd6+{0}], [%rd4+{0}], 16;\n", go * GO);
    let copies = (0..TRIAL.shared_bytes() / GO).map(copy).collect::<String>();
    let well = TRIAL.whole().replace(&TRIAL.copies(), &format!("{copies} cp.async.wait_all;"));
    TRIAL.check(&well, 10.0, 1.0);
    let early = well
        .replace("fence.proxy.async.shared::cta;", "")
        .replace("cp.async.wait_all;", "fence.proxy.async.shared::cta;\n cp.async.wait_all;");
    let fault = TRIAL.fault(&early);
    assert!(fault.contains("no fence.proxy.async made visible"), "{fault}");
    let fault = TRIAL.fault(&well.replace("cp.async.wait_all;", ""));
    assert!(fault.contains("a copy to it was not waited for"), "{fault}");
}

/// A warpgroup that multiplies and one that copies the factors to it, once.
fn with_loaders() -> (Trial, String) {
    let trial = Trial { threads: 256, more: 16, ..TRIAL };
    let copy = |go: usize| format!("cp.async.cg.shared.global [%rd6+{0}], [%rd4+{0}], 16;\n", go * GO);
    let copies = (0..trial.shared_bytes() / GO).map(copy).collect::<String>();
    let (full, product) = (trial.shared_bytes(), trial.product("1, 1, 1"));
    let body = format!(
        "setp.ne.u32 %p1, %r1, 0;\n @%p1 bra $L1;\n mbarrier.init.shared.b64 [shared+{full}], 128;\n\
         mbarrier.init.shared.b64 [shared+{free}], 128;\n$L1:\n bar.sync 0;\n \
         setp.lt.u32 %p2, %r1, 128;\n @%p2 bra $L2;\n setmaxnreg.dec.sync.aligned.u32 24;\n {copies}\n\
         cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%rd5+{full}];\n{{\n.reg .pred done;\nfree:\n\
         mbarrier.try_wait.parity.shared::cta.b64 done, [%rd5+{free}], 0;\n@!done bra free;\n}}\n {copies} ret;\n$L2:\n \
         setmaxnreg.inc.sync.aligned.u32 240;\n {}\n{{\n.reg .pred done;\nfull:\n\
         mbarrier.try_wait.parity.shared::cta.b64 done, [%rd5+{full}], 0;\n@!done bra full;\n}}\n\
         fence.proxy.async.shared::cta;\n wgmma.fence.sync.aligned;\n{product}\n{WAIT}\n\
         mbarrier.arrive.shared.b64 _, [%rd5+{free}];\n {}",
        trial.begin(),
        trial.stores(),
        free = full + 8
    );
    (trial, body)
}

#[test]
fn what_loaders_copy_is_fenced_off_by_who_reads_it() {
    let (trial, body) = with_loaders();
    trial.check(&body, 10.0, 1.0);
    let refused = |from: &str, to: &str, why: &str| {
        assert!(body.contains(from), "{from}");
        let fault = trial.fault(&body.replace(from, to));
        assert!(fault.contains(why), "{fault}");
    };
    let invisible = "wgmma reads shared memory that no fence.proxy.async made visible: byte 0, which a copy of thread 0 of \
                     warp 4 wrote";
    let fence = "fence.proxy.async.shared::cta;\n";
    refused(fence, "", invisible);
    // All who read have to, after they waited.
    refused(fence, "setp.lt.u32 %p3, %r1, 96;\n @%p3 fence.proxy.async;\n", invisible);
    refused(fence, "setp.ne.u32 %p3, %r1, 77;\n @%p3 fence.proxy.async;\n", invisible);
    let early = body.replace(fence, "").replace("$L2:", &format!("$L2:\n{fence}"));
    assert!(trial.fault(&early).contains(invisible));
    let unasked = early.replace("{\n.reg .pred done;\nfull:", "bra.uni $L3;\n{\n.reg .pred done;\nfull:");
    let unasked = trial.fault(&unasked.replace(" wgmma.fence", "\n$L3:\n wgmma.fence"));
    // Unwritten as yet: it is found where the copies are asked for.
    assert!(unasked.contains("is written, and warp 0 read it since the last barrier"), "{unasked}");
    // Loaders may, once their copies are there and before others know of it.
    let noinc = format!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%rd5+{}];", trial.shared_bytes());
    let arrive = format!("mbarrier.arrive.shared.b64 _, [%rd5+{}];", trial.shared_bytes());
    let by_loaders = body.replace(fence, "").replace(&noinc, &format!("cp.async.wait_all;\n {fence} {arrive}"));
    trial.check(&by_loaders, 10.0, 1.0);
    let too_early =
        by_loaders.replace(&format!("cp.async.wait_all;\n {fence}"), &format!("{fence} cp.async.wait_all;\n"));
    assert!(trial.fault(&too_early).contains("no fence.proxy.async made visible"));
    let too_late = by_loaders.replace(&format!("{fence} {arrive}"), &format!("{arrive}\n {fence}"));
    assert!(trial.fault(&too_late).contains("no fence.proxy.async made visible"));
    let of_none = body.replace(fence, "").replace(&noinc, &format!("{fence} {noinc}\n {fence}"));
    assert!(trial.fault(&of_none).contains(invisible));
}

#[test]
fn loaders_wait_for_products() {
    let (trial, body) = with_loaders();
    let free = format!("mbarrier.arrive.shared.b64 _, [%rd5+{}];", trial.shared_bytes() + 8);
    let early = body.replace(&free, "").replace(WAIT, &format!("{free}\n{WAIT}"));
    let fault = trial.fault(&early);
    assert!(fault.contains("is written, and warp 0 read it since the last barrier"), "{fault}");
    // Where others stand before they wait for it, and where it stands in the text is not all.
    let stands = early.replace(&format!("{free}\n"), &format!("{free}\n bar.sync 1, 128;\n"));
    let fault = trial.fault(&stands);
    assert!(fault.contains("while a wgmma that was not waited for read it"), "{fault}");
    let some = body.replace(
        "setmaxnreg.inc.sync.aligned.u32 240;",
        "setp.lt.u32 %p3, %r1, 32;\n @%p3 bra $L3;\n \
        setmaxnreg.inc.sync.aligned.u32 240;\n$L3:",
    );
    let fault = trial.fault(&some);
    assert!(fault.contains("another warp of the warpgroup is at line"), "{fault}");
}

#[test]
fn what_a_product_reads_is_not_written_before_a_barrier() {
    let write = "st.shared.b32 [%rd6+2304], %r3;";
    TRIAL.check(&TRIAL.whole().replace(WAIT, &format!("{WAIT}\n bar.sync 0;\n {write}")), 10.0, 1.0);
    // In no order with other warps.
    let early = "of shared memory, and thread 0 of warp 0 wrote it since the last barrier";
    TRIAL.refused(WAIT, &format!("{WAIT}\n {write}"), "thread 1 of the same warp read it since the last barrier");
    TRIAL.refused(WAIT, &format!("{WAIT}\n bar.warp.sync -1;\n {write}"), early);
    // Before it was waited for, whatever barrier there is.
    let under_way = "while a wgmma that was not waited for read it";
    TRIAL.refused(WAIT, &format!("bar.sync 0;\n {write}\n {WAIT}"), under_way);
    TRIAL.refused(WAIT, &format!("bar.sync 0;\n {write}\n bar.sync 0;\n {WAIT}"), under_way);
    let [commit, wait] = ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned"];
    let later = format!("{commit}\n {wait} 1;\n bar.sync 0;\n {write}\n {wait} 0;");
    TRIAL.refused(WAIT, &later, under_way);
    // Waited for, and in no order with others that wait.
    TRIAL.refused(WAIT, &format!("bar.sync 0;\n {WAIT}\n bar.warp.sync -1;\n {write}"), under_way);
}

#[test]
fn registers_of_a_product_are_left_alone() {
    let product = TRIAL.product("1, 1, 1");
    let read = format!("{product}\n st.global.b32 [%rd8+256], %f3;");
    TRIAL.refused(&product, &read, "accumulators are read before wgmma.wait_group");
    TRIAL.refused(&product, &format!("{product}\n mov.b32 %f3, 0;"), "accumulators are written before");
    TRIAL.refused(WAIT, "wgmma.commit_group.sync.aligned;", "accumulators are read before wgmma.wait_group");
    TRIAL.refused(WAIT, "wgmma.wait_group.sync.aligned 0;", "accumulators are read before wgmma.wait_group");
    let unwatched = "wgmma.wait_group.sync.aligned 0;";
    let ends = TRIAL.whole().replace(unwatched, "").replace(&TRIAL.stores(), "");
    assert!(TRIAL.fault(&ends).contains("the kernel ends with a wgmma that was not waited for"));
    // Without a fence, and with one too early.
    TRIAL.refused("wgmma.fence.sync.aligned;", "", "accumulators were touched since the last wgmma.fence");
    TRIAL.refused(&product, &format!("mov.b32 %f3, 0;\n {product}"), "accumulators were touched");
    TRIAL.refused(&product, &format!("{product}\n{WAIT}\n mov.b32 %r9, %f3;\n{product}"), "accumulators were touched");
    let again = format!("{product}\n{WAIT}\n mov.b32 %r9, %f3;\n wgmma.fence.sync.aligned;\n{product}");
    TRIAL.check(&TRIAL.whole().replace(&product, &again), 10.0, 2.0);
    let narrower = Trial { columns: 32, ..TRIAL }.product("1, 1, 1");
    TRIAL.refused(&product, &format!("{product}\n{narrower}"), "accumulators were those of another shape");
    // The left factor.
    let trial = Trial { in_registers: true, ..TRIAL };
    let product = trial.product("1, 1, 1");
    trial.refused(&product, &format!("{product}\n mov.b32 %r12, 0;"), "a factor in registers is written before");
    trial.refused(&product, &format!("mov.b32 %r12, 0;\n {product}"), "a factor in registers was written since");
    trial.check(&trial.whole().replace(&product, &format!("mov.b32 %r9, %r12;\n {product}")), 10.0, 1.0);
    let of_sums = product.replace("%f", "%f10").replace("{%r11, %r12, %r13, %r14}", "{%f1, %f2, %f3, %f4}");
    trial.refused(&product, &format!("{product}\n{of_sums}"), "accumulators are a factor before wgmma.wait_group");
}

#[test]
fn a_warpgroup_goes_together() {
    // Two of them.
    let two = Trial { threads: 256, ..TRIAL };
    let copied = "setp.lt.u32 %p2, %r1, 128;\n @!%p2 bra $L1;";
    two.check(&format!("{copied}\n{}", two.whole().replacen("mov.b32 %f1,", "$L1:\n mov.b32 %f1,", 1)), 10.0, 1.0);
    let few = Trial { threads: 96, ..TRIAL };
    let fault = few.fault(ORDER);
    assert!(fault.contains("a warpgroup has four warps, and warp 0 is in none"), "{fault}");
    let product = TRIAL.product("1, 1, 1");
    let by_warp = |threads: u32| format!("setp.lt.u32 %p1, %r1, {threads};\n @%p1 bra $L1;\n {product}\n$L1:");
    TRIAL.refused(&product, &by_warp(96), "another warp of the warpgroup is at line");
    let skipped = "setp.lt.u32 %p1, %r1, 96;\n @%p1 bra $L1;\n wgmma.fence.sync.aligned;\n$L1:\n bar.sync 0;";
    TRIAL.refused("wgmma.fence.sync.aligned;", skipped, "other warps of its warpgroup do this");
    TRIAL.refused(&product, &by_warp(100), "this needs every thread of the warp");
    let other =
        |threads: u32| format!("setp.lt.u32 %p1, %r1, {threads};\n selp.b64 %rd12, %rd11, %rd12, %p1;\n {product}");
    TRIAL.refused(&product, &other(32), "another warp of the warpgroup has other descriptors");
    TRIAL.refused(&product, &other(7), "the threads of a warp have different descriptors");
}

#[test]
fn descriptors_that_are_not_known_are_refused() {
    let changed = |bits: u64| format!("mov.b64 %rd12, {};", Trial::descriptor(TRIAL.right_at()) ^ bits);
    let well = changed(0);
    TRIAL.refused(&well, &changed(1 << 62), "the swizzle mode 1 of a descriptor is not known");
    TRIAL.refused(&well, &changed(3 << 62), "the swizzle mode 3 of a descriptor is not known");
    TRIAL.refused(&well, &changed(1 << 50), "the base offset 2 of a descriptor is not known");
    TRIAL.refused(&well, &changed(1 << 14), "has bits that mean nothing");
    TRIAL.refused(&well, &changed(1 << 13), "of shared memory, of which there are 6144");
    TRIAL.refused(&well, &changed(1 << 44), "of shared memory, of which there are 6144");
    // Other distances are other elements, and what nobody wrote is no number.
    let sums = TRIAL.run(&TRIAL.whole().replace(&TRIAL.copies(), "")).unwrap();
    assert!(sums[..32].iter().all(|sum| sum.is_nan()));
    let text = |line: &str| format!(".visible .entry kernel(\n\t.param .b8 p[16]\n)\n{{\n{line}\n}}\n");
    let eight = Trial { columns: 8, ..TRIAL }.product("1, 1, 1");
    for (line, what) in [
        (eight.replace("n8k16", "n12k16"), "this product is not known"),
        (eight.replace("n8k16", "n16k16"), "8 registers are expected for sums"),
        (eight.replace("bf16.bf16", "e4m3.e4m3"), "this product is not known"),
        (eight.replace("1, 1, 1, 0, 1;", "1, 1, 1, 1;"), "8 operands are expected"),
        (eight.replace("1, 1, 1, 0, 1;", "1, 2, 1, 0, 1;"), "`2` is neither 1 nor -1"),
        ("wgmma.fence.sync;".to_owned(), "`wgmma.fence.sync` is not known"),
        ("fence.proxy.alias;".to_owned(), "`fence.proxy.alias` is not known"),
    ] {
        let why = Module::parse(&text(&line)).expect_err(&line);
        assert!(why.contains(what), "{why}");
    }
}
