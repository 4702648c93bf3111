//! Kernels written by hand: that instructions do what PTX says, and that what is wrong is found.

mod loaders;
mod warpgroup;

use crate::{Fault, Launch, Memory, Module, NOT_A_NUMBER, run};

/// What is run for all of these: one or more warps, a tensor `in` of numbers 0, 1, 2, … and one, `out`, to write to.
fn results(body: &str, threads: u32, blocks: u32) -> Result<Vec<u32>, Fault> {
    let text = format!(
        ".visible .entry kernel(\n\t.param .align 8 .b8 kernel_param_0[16]\n)\n{{\n\t.reg .b32 %r<9>;\n\
         \tld.param.b64 %rd1, [kernel_param_0];\n\tld.param.b64 %rd2, [kernel_param_0+8];\n\tmov.u32 %r1, %tid.x;\n\
         \tmov.u32 %r2, %ctaid.x;\n\tmul.wide.u32 %rd3, %r1, 4;\n\tadd.s64 %rd4, %rd2, %rd3;\n\
         \tmov.b64 %rd5, shared;\n\tadd.s64 %rd6, %rd5, %rd3;\n\
         {body}\n\tret;\n}}\n"
    );
    let module = Module::parse(&text).expect("it is well formed");
    let kernel = module.kernel("kernel").expect("it is there");
    let mut memory = Memory::new();
    let numbers: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    let input = memory.add("in", numbers.len(), 16, Some(&numbers));
    let output = memory.add("out", 4 * threads as usize, 16, None);
    let parameter: Vec<u8> = [input, output].iter().flat_map(|it| memory.address(*it).to_le_bytes()).collect();
    let launch = Launch {
        kernel,
        blocks: [blocks, 1, 1],
        threads,
        shared_bytes: 1024,
        unwritten: NOT_A_NUMBER,
        parameter: &parameter,
    };
    run(&launch, &memory, 1)?;
    let bytes = memory.bytes(output);
    Ok(bytes.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect())
}

fn fault(body: &str, threads: u32, blocks: u32) -> String {
    results(body, threads, blocks).expect_err("something is wrong with it").to_string()
}

/// What each thread computes in `%r9`.
fn computed(body: &str) -> Vec<u32> {
    results(&format!("{body}\n\tst.global.b32 [%rd4], %r9;"), 32, 1).unwrap()
}

#[test]
fn a_value_goes_to_another_warp_past_a_barrier() {
    let well = "st.shared.b32 [%rd6], %r1;\n bar.sync 0;\n xor.b32 %r3, %r1, 32;\n mul.wide.u32 %rd7, %r3, 4;\n \
                add.s64 %rd8, %rd5, %rd7;\n ld.shared.b32 %r4, [%rd8];\n st.global.b32 [%rd4], %r4;";
    let expected: Vec<u32> = (0..64).map(|it| it ^ 32).collect();
    assert_eq!(results(well, 64, 1).unwrap(), expected);
    // The first warp reads what the second has not written yet.
    let race = fault(&well.replace("bar.sync 0;", ""), 64, 1);
    assert!(race.contains("warp 0 read it") && race.contains("st.shared.b32 [%rd6], %r1"), "{race}");
}

#[test]
fn races_between_warps_are_found() {
    // Both warps write the same bytes.
    let both = "and.b32 %r3, %r1, 31;\n mul.wide.u32 %rd7, %r3, 4;\n add.s64 %rd8, %rd5, %rd7;\n \
                st.shared.b32 [%rd8], %r1;";
    assert!(results(both, 64, 1).is_ok());
    let race = fault(&format!("{both}\n bar.sync 0;\n ld.shared.b32 %r3, [%rd8];"), 64, 1);
    assert!(race.contains("thread 0 of warp 0 and another wrote it without a barrier between them"), "{race}");
    let same = both.replace("st.shared.b32 [%rd8], %r1;", "st.shared.b32 [%rd8], %r3;");
    assert!(results(&format!("{same}\n bar.sync 0;\n ld.shared.b32 %r3, [%rd8];"), 64, 1).is_ok());
    // One reads before another writes.
    let read_first = "st.shared.b32 [%rd6], %r1;\n bar.sync 0;\n ld.shared.b32 %r5, [%rd5];\n setp.lt.u32 %p1, %r1, 32;\n \
                      @%p1 bra $L1;\n st.shared.b32 [%rd5], %r1;\n$L1:";
    let race = fault(read_first, 64, 1);
    assert!(race.contains("is written, and warp 0 read it since the last barrier"), "{race}");
}

#[test]
fn races_within_a_warp_are_found() {
    let across = "st.shared.b32 [%rd6], %r1;\n bar.warp.sync -1;\n xor.b32 %r3, %r1, 1;\n mul.wide.u32 %rd7, %r3, 4;\n \
                  add.s64 %rd8, %rd5, %rd7;\n ld.shared.b32 %r9, [%rd8];";
    assert_eq!(computed(across), (0..32).map(|it| it ^ 1).collect::<Vec<_>>());
    let race = fault(&across.replace("bar.warp.sync -1;", ""), 32, 1);
    assert!(race.contains("of the same warp wrote it"), "{race}");
    let written = format!("{across}\n st.shared.b32 [%rd6], %r9;");
    let race = fault(&written, 32, 1);
    assert!(race.contains("of the same warp read it"), "{race}");
}

#[test]
fn accesses_out_of_bounds_or_not_aligned_are_found() {
    let beyond = fault("ld.shared.b32 %r3, [%rd6+1024];", 32, 1);
    assert!(beyond.contains("4 bytes at 1024 of shared memory, of which there are 1024"), "{beyond}");
    let beyond = fault("ld.global.b32 %r3, [%rd1+256];", 32, 1);
    assert!(beyond.contains("4 bytes at 256 of `in`, which has 256"), "{beyond}");
    let beyond = fault("st.global.b32 [%rd2+-4], %r1;", 32, 1);
    assert!(beyond.contains("4 bytes at -4 of `out`"), "{beyond}");
    let beyond = fault("ld.param.b64 %rd7, [kernel_param_0+16];", 32, 1);
    assert!(beyond.contains("8 bytes at 16 of a parameter of 16"), "{beyond}");
    let apart = fault("ld.global.v2.b32 {%r3, %r4}, [%rd1+4];", 32, 1);
    assert!(apart.contains("8 bytes at once"), "{apart}");
    // A tensor that has to be aligned to 16 is aligned to nothing more.
    let null = fault("mov.b64 %rd7, 0;\n st.global.b32 [%rd7], %r1;", 32, 1);
    assert!(null.contains("no address of a tensor"), "{null}");
}

#[test]
fn what_was_never_written_is_found() {
    let shared = computed("ld.shared.b32 %r3, [%rd6];\n add.rn.ftz.f32 %r9, %r3, %r3;");
    assert!(shared.iter().all(|bits| f32::from_bits(*bits).is_nan()));
    let global = fault("ld.global.b32 %r3, [%rd4];", 32, 1);
    assert!(global.contains("byte 0 of `out` is read and was never written"), "{global}");
}

#[test]
fn what_an_input_or_another_block_holds_is_not_written() {
    let input = fault("st.global.b32 [%rd1], %r1;", 32, 1);
    assert!(input.contains("`in` may only be read"), "{input}");
    let two = fault("st.global.b32 [%rd4], %r2;", 32, 2);
    assert!(two.contains("block 0 of the same launch wrote it"), "{two}");
    let one = fault("st.global.b32 [%rd2], %r1;", 32, 1);
    assert!(one.contains("thread 0 of the same warp wrote it since"), "{one}");
    assert!(results("st.global.b32 [%rd2], 7;\n st.global.b32 [%rd2], 7;", 32, 2).is_ok());
}

#[test]
fn a_copy_arrives_when_it_was_waited_for() {
    let well = "shl.b64 %rd7, %rd3, 2;\n setp.lt.u32 %p1, %r1, 16;\n @!%p1 bra $L1;\n add.s64 %rd8, %rd5, %rd7;\n \
                add.s64 %rd9, %rd1, %rd7;\n cp.async.cg.shared.global [%rd8], [%rd9], 16;\n$L1:\n cp.async.wait_all;\n \
                bar.sync 0;\n ld.shared.b32 %r4, [%rd6+4];\n st.global.b32 [%rd4], %r4;";
    assert_eq!(results(well, 32, 1).unwrap(), (1..33).collect::<Vec<_>>());
    let early = fault(&well.replace("cp.async.wait_all;", ""), 32, 1);
    assert!(early.contains("a copy to it was not waited for"), "{early}");
    let others = fault(&well.replace("bar.sync 0;", ""), 32, 1);
    assert!(others.contains("of the same warp wrote it"), "{others}");
    let zeros = well.replace("], 16;", "], 16, 0;");
    assert_eq!(results(&zeros, 32, 1).unwrap(), vec![0; 32]);
}

#[test]
fn threads_that_part_meet_again() {
    let parted = "setp.lt.u32 %p1, %r1, 7;\n @%p1 bra $L1;\n mov.b32 %r8, 100;\n bra.uni $L2;\n$L1:\n mov.b32 %r8, 200;\n\
                  $L2:\n shfl.sync.bfly.b32 %r9, %r8, 16, 31, -1;";
    let expected: Vec<u32> = (0..32).map(|it| if it ^ 16 < 7 { 200 } else { 100 }).collect();
    assert_eq!(computed(parted), expected);
    // Each thread goes round as often as its number says.
    let rounds = "mov.b32 %r9, 0;\n mov.b32 %r8, 0;\n$L1:\n setp.ge.u32 %p1, %r8, %r1;\n @%p1 bra $L2;\n \
                  add.s32 %r9, %r9, %r8;\n add.s32 %r8, %r8, 1;\n bra.uni $L1;\n$L2:";
    assert_eq!(computed(rounds), (0..32u32).map(|it| (0..it).sum()).collect::<Vec<_>>());
    let some = fault(
        "setp.lt.u32 %p1, %r1, 7;\n @%p1 bra $L1;\n bar.warp.sync -1;\n bra.uni $L2;\n$L1:\n \
                      bar.warp.sync -1;\n$L2:",
        32,
        1,
    );
    assert!(some.contains("some went another way"), "{some}");
    let ended = fault("setp.lt.u32 %p1, %r1, 32;\n @%p1 bra $L1;\n bar.sync 0;\n$L1:", 64, 1);
    assert!(ended.contains("ended: warp 0; at barrier 0 of 64 threads: warp 1"), "{ended}");
}

#[test]
fn numbers_are_computed_as_ptx_says() {
    let float = |body: &str| f32::from_bits(computed(body)[5]);
    assert_eq!(float("mov.b32 %r3, 0f40400000;\n fma.rn.ftz.f32 %r9, %r3, %r3, 0f3F800000;"), 10.0);
    // Below the normal range.
    assert_eq!(float("mov.b32 %r3, 0f00400000;\n add.rn.ftz.f32 %r9, %r3, %r3;"), 0.0);
    assert_eq!(float("mov.b32 %r3, 0f7FC00000;\n max.ftz.f32 %r9, %r3, 0fBF800000;"), -1.0);
    assert_eq!(float("mov.b32 %r3, 0f3F801000;\n cvt.rna.tf32.f32 %r9, %r3;"), f32::from_bits(0x3f80_2000));
    assert_eq!(computed("mov.b32 %r3, 0f3FC00000;\n cvt.rn.bf16x2.f32 %r9, %r3, 0f40000000;")[0], 0x3fc0_4000);
    assert_eq!(computed("mov.b32 %r3, -256;\n bfe.s32 %r9, %r3, 4, 8;")[0], 0xffff_fff0);
    assert_eq!(computed("mov.b32 %r3, -256;\n bfe.u32 %r9, %r3, 4, 8;")[0], 0xf0);
    assert_eq!(computed("mov.b32 %r3, -1;\n shl.b32 %r9, %r3, 32;")[0], 0);
    assert_eq!(computed("mov.b32 %r3, -7;\n min.relu.s32 %r9, %r3, 5;")[0], 0);
    assert_eq!(computed("mov.b32 %r3, -7;\n mul.hi.u32 %r9, %r3, %r3;")[0], 0xffff_fff2);
    let nan = "mov.b32 %r3, 0f7FC00000;\n setp.nan.ftz.f32 %p1, %r3, %r3;\n setp.gt.ftz.f32 %p2, %r3, %r3;\n \
               not.pred %p3, %p2;\n and.pred %p4, %p1, %p3;\n selp.b32 %r9, 1, 2, %p4;";
    assert_eq!(computed(nan)[0], 1);
}

#[test]
fn matrices_lie_as_ptx_says() {
    // A matrix whose element in row i and column j is 8 i + j; each thread gives the address of a row.
    let written = "shl.b32 %r3, %r1, 1;\n add.s32 %r4, %r3, 1;\n shl.b32 %r4, %r4, 16;\n or.b32 %r3, %r3, %r4;\n \
                   st.shared.b32 [%rd6], %r3;\n bar.sync 0;\n and.b32 %r5, %r1, 7;\n mul.wide.u32 %rd7, %r5, 16;\n \
                   add.s64 %rd8, %rd5, %rd7;\n";
    let plain = computed(&format!("{written} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r9}}, [%rd8];"));
    let across = computed(&format!("{written} ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{%r9}}, [%rd8];"));
    let moved = computed(&format!(
        "{written} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r8}}, [%rd8];\n \
         movmatrix.sync.aligned.m8n8.trans.b16 %r9, %r8;"
    ));
    for lane in 0..32 {
        let (at, pair) = (lane / 4, 2 * (lane % 4));
        assert_eq!(plain[lane as usize], (8 * at + pair) | (8 * at + pair + 1) << 16);
        assert_eq!(across[lane as usize], (8 * pair + at) | (8 * (pair + 1) + at) << 16);
    }
    assert_eq!(moved, across);
    let stored = computed(&format!(
        "{written} ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{%r8}}, [%rd8];\n bar.sync 0;\n \
         stmatrix.sync.aligned.m8n8.x1.shared.b16 [%rd8], {{%r8}};\n bar.sync 0;\n ld.shared.b32 %r9, [%rd6];"
    ));
    assert_eq!(stored, across);
    // In a product of ones, every sum is what is added up: 16 ones and what was there.
    let product = "mov.b32 %r3, 1065369472;\n mov.b32 %r4, 0f40000000;\n \
                   mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32\n {%r9, %r5, %r6, %r7},\n \
                   {%r3, %r3, %r3, %r3},\n {%r3, %r3},\n {%r4, %r4, %r4, %r4};";
    assert_eq!(f32::from_bits(computed(product)[17]), 18.0);
    let product = "mov.b32 %r3, 0f3F800001;\n mov.b32 %r4, 0f40000000;\n \
                   mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32\n {%r5, %r9, %r6, %r7},\n \
                   {%r3, %r3, %r3, %r3},\n {%r3, %r3},\n {%r4, %r4, %r4, %r4};";
    assert_eq!(f32::from_bits(computed(product)[3]), 10.0);
    let product = "mov.b32 %r3, 1065369472;\n mov.b32 %r4, 0f40000000;\n \
                   mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32\n {%r9, %r5, %r6, %r7},\n \
                   {%r3, %r3},\n {%r3},\n {%r4, %r4, %r4, %r4};";
    assert_eq!(f32::from_bits(computed(product)[17]), 10.0);
    // 1 beside no number, -2 beside 3.
    let larger = "mov.b32 %r3, 0x3F807FC0;\n mov.b32 %r4, 0xC0004040;\n max.NaN.bf16x2 %r9, %r3, %r4;";
    assert_eq!(computed(larger)[0], 0x3f80_7fff);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let text = |line: &str| format!(".visible .entry kernel(\n\t.param .b8 p[16]\n)\n{{\n{line}\n}}\n");
    for (line, what) in [
        ("frobnicate.b32 %r1, %r2;", "`frobnicate.b32` is not known"),
        ("add.rn.f32 %r1, %r2, %r3;", "`add.rn.f32` is not known"),
        ("setp.eq.and.b32 %p1, %r1, %r2, %p2;", "`setp.eq.and.b32` is not known"),
        ("ld.local.b32 %r1, [%rd1];", "the memory `local` is not known"),
        ("add.s32 %r1, %r2, nothing;", "`nothing` is neither a number"),
        ("bra $L9;", "no label `$L9`"),
    ] {
        let why = Module::parse(&text(line)).expect_err(line);
        assert!(why.contains(what) && why.contains("kernel"), "{why}");
    }
}
