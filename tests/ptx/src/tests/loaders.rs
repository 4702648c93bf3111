//! Warps that copy while others compute: mbarriers, barriers of a part of the warps, and what goes wrong without them.

use super::{fault, results};
use crate::{Fault, Launch, Memory, Module, NOT_A_NUMBER, run};

/// Turns, of as many numbers as there are threads that add them up.
const TURNS: u32 = 7;
const NUMBERS: u32 = 64;

/// An address and a parity to wait for, as text written by hand.
fn wait(number: u32, at: &str, parity: &str) -> String {
    format!(
        "// begin inline asm\n{{\n.reg .pred done;\nwaits_{number}:\n\
         mbarrier.try_wait.parity.shared::cta.b64 done, [{at}], {parity};\n@!done bra waits_{number};\n}}\n\
         // end inline asm"
    )
}

const AWAIT_FREE: &str = "LOADER WAITS;";
const AWAIT_FULL: &str = "OTHERS WAIT;";
const COPY: &str = "cp.async.ca.shared.global [%rd9], [%rd10], 8;";
const COPIED: &str = "cp.async.mbarrier.arrive.noinc.shared.b64 [%rd8];";
const READ: &str = "ld.shared.b32 %r9, [%rd9];";
const RELEASE: &str = "mbarrier.arrive.shared.b64 _, [%rd8+16];";
/// As above, by one thread of each warp.
const RELEASE_BY_ONE: &str = "bar.warp.sync -1;\n and.b32 %r10, %r1, 31;\n setp.ne.u32 %p5, %r10, 0;\n \
                              @%p5 bra $L7;\n mbarrier.arrive.shared::cta.b64 %rd11, [%rd8+16];\n$L7:";

/// Two warps add numbers up that a third copies to two rooms of 256 bytes, from byte 64 on. Mbarriers say of each that it
/// is full, at 0 and 8, or free, at 16 and 24.
fn body() -> String {
    format!(
        "mov.b32 %r3, 64;
         setp.ne.u32 %p1, %r1, 0;
         @%p1 bra $L1;
         mbarrier.init.shared.b64 [shared], 32;
         mbarrier.init.shared::cta.b64 [%rd6+8], 32;
         mbarrier.init.shared.b64 [shared+16], %r3;
         mbarrier.init.shared.b64 [shared+24], 64;
         fence.mbarrier_init.release.cluster;
         $L1:
         bar.sync 0;
         mov.b32 %r4, 0;
         setp.lt.u32 %p2, %r1, 64;
         @%p2 bra $L4;
         sub.s32 %r2, %r1, 64;
         $L2:
         and.b32 %r5, %r4, 1;
         shr.u32 %r6, %r4, 1;
         and.b32 %r6, %r6, 1;
         xor.b32 %r6, %r6, 1;
         mul.wide.u32 %rd7, %r5, 8;
         add.s64 %rd8, %rd5, %rd7;
         {AWAIT_FREE}
         shl.b32 %r7, %r5, 8;
         mad.lo.s32 %r7, %r2, 8, %r7;
         cvt.u64.u32 %rd9, %r7;
         add.s64 %rd9, %rd5, %rd9;
         add.s64 %rd9, %rd9, 64;
         mul.wide.u32 %rd10, %r4, 256;
         add.s64 %rd10, %rd1, %rd10;
         mul.wide.u32 %rd11, %r2, 8;
         add.s64 %rd10, %rd10, %rd11;
         {COPY}
         {COPIED}
         add.s32 %r4, %r4, 1;
         setp.lt.u32 %p3, %r4, {TURNS};
         @%p3 bra $L2;
         ret;
         $L4:
         mov.b32 %r8, 0;
         xor.b32 %r2, %r1, 63;
         $L5:
         and.b32 %r5, %r4, 1;
         shr.u32 %r6, %r4, 1;
         and.b32 %r6, %r6, 1;
         mul.wide.u32 %rd7, %r5, 8;
         add.s64 %rd8, %rd5, %rd7;
         {AWAIT_FULL}
         shl.b32 %r7, %r5, 8;
         mad.lo.s32 %r7, %r2, 4, %r7;
         cvt.u64.u32 %rd9, %r7;
         add.s64 %rd9, %rd5, %rd9;
         add.s64 %rd9, %rd9, 64;
         {READ}
         {RELEASE}
         add.s32 %r8, %r8, %r9;
         add.s32 %r4, %r4, 1;
         setp.lt.u32 %p4, %r4, {TURNS};
         @%p4 bra $L5;
         st.global.b32 [%rd4], %r8;"
    )
}

fn waited(body: &str) -> String {
    let free = format!("add.s64 %rd9, %rd8, 16;\n cvt.u32.u64 %r11, %rd9;\n{}", wait(1, "%r11", "%r6"));
    let full = format!("cvt.u32.u64 %r11, %rd8;\n{}", wait(2, "%r11", "%r6"));
    body.replace(AWAIT_FREE, &free).replace(AWAIT_FULL, &full)
}

fn sums(body: &str) -> Result<Vec<u32>, Fault> {
    let text = format!(
        ".visible .entry kernel(\n\t.param .align 8 .b8 p[16]\n)\n{{\n\tld.param.b64 %rd1, [p];\n\
         \tld.param.b64 %rd2, [p+8];\n\tmov.u32 %r1, %tid.x;\n\tmul.wide.u32 %rd3, %r1, 4;\n\
         \tadd.s64 %rd4, %rd2, %rd3;\n\tmov.b64 %rd5, shared;\n\tmov.b64 %rd6, shared;\n{}\n\tret;\n}}\n",
        waited(body)
    );
    let module = Module::parse(&text).expect("it is well formed");
    let mut memory = Memory::new();
    let numbers: Vec<u8> = (0..TURNS * NUMBERS).flat_map(|it| (it * it).to_le_bytes()).collect();
    let input = memory.add("in", numbers.len(), 16, Some(&numbers));
    let output = memory.add("out", 4 * NUMBERS as usize, 16, None);
    let parameter: Vec<u8> = [input, output].iter().flat_map(|it| memory.address(*it).to_le_bytes()).collect();
    let launch = Launch {
        kernel: module.kernel("kernel").expect("it is there"),
        blocks: [1; 3],
        threads: 96,
        shared_bytes: 64 + 512,
        unwritten: NOT_A_NUMBER,
        parameter: &parameter,
    };
    run(&launch, &memory, 1)?;
    Ok(memory.bytes(output).chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect())
}

fn check(body: &str) {
    let expected = |thread: u32| (0..TURNS).map(|turn| (NUMBERS * turn + (thread ^ 63)).pow(2)).sum::<u32>();
    assert_eq!(sums(body).unwrap(), (0..NUMBERS).map(expected).collect::<Vec<_>>());
}

fn refused(from: &str, to: &str, why: &str) {
    assert!(body().contains(from), "{from}");
    let fault = sums(&body().replace(from, to)).expect_err(why).to_string();
    assert!(fault.contains(why), "{fault}");
}

/// Releases by one thread of each warp.
fn by_one() -> String {
    body()
        .replace(RELEASE, RELEASE_BY_ONE)
        .replace("mov.b32 %r3, 64;", "mov.b32 %r3, 2;")
        .replace("+24], 64;", "+24], 2;")
}

#[test]
fn loaders_and_others_take_turns() {
    check(&body());
    check(&by_one());
    // Loaders that wait for their copies themselves.
    check(&body().replace(COPIED, "cp.async.wait_all;\n mbarrier.arrive.release.cta.shared::cta.b64 %rd11, [%rd8];"));
    // Ones that write.
    let written = "ld.global.v2.b32 {%r12, %r13}, [%rd10];\n st.shared.v2.b32 [%rd9], {%r12, %r13};";
    let arrive = "mbarrier.arrive.shared.b64 _, [%rd8];";
    check(&body().replace(COPY, written).replace(COPIED, arrive));
    // Ones that wait for their copies where nobody has to, and read them.
    check(&body().replace(COPIED, &format!("{COPIED}\n cp.async.wait_all;\n ld.shared.b32 %r12, [%rd9];")));
}

#[test]
fn without_waiting_there_are_races() {
    // The others read what was not copied yet, or do not wait for it to arrive.
    refused(AWAIT_FULL, "", "is written, and warp 0 read it since the last barrier");
    // Waited for once and in vain: the phase has ended by then, but that is not known.
    let once = "mbarrier.try_wait.parity.shared.b64 %p7, [%rd8], %r6;";
    refused(AWAIT_FULL, once, "is read, and a copy to it by thread 31 of warp 2 was not waited for");
    // Loaders do not wait: they write anew what nobody has read yet.
    refused(AWAIT_FREE, "", "is written, and a copy to it by thread 0 of warp 2 was not waited for");
    // The others release what they read afterwards.
    refused(&format!("{READ}\n         {RELEASE}"), &format!("{RELEASE}\n{READ}"), "is written, and warp 1 read it");
    // One releases for a warp, of which he knows nothing.
    let fault = sums(&by_one().replace("bar.warp.sync -1;", "")).expect_err("it is a race").to_string();
    assert!(fault.contains("is written, and warp 1 read it"), "{fault}");
    // Copies that arrive tell nothing of what the warp itself wrote.
    let written =
        "ld.global.v2.b32 {%r12, %r13}, [%rd10];\n st.shared.v2.b32 [%rd9], {%r12, %r13};\n bar.warp.sync -1;";
    refused(COPY, written, "is read, and thread 31 of warp 2 wrote it since the last barrier");
    // Who asked for a copy knows no more than others.
    refused(COPIED, &format!("{COPIED}\n ld.shared.b32 %r12, [%rd9];"), "of warp 2 was not waited for");
    let of_another = "cp.async.wait_all;\n xor.b64 %rd9, %rd9, 8;\n ld.shared.b32 %r12, [%rd9];";
    refused(COPIED, &format!("{COPIED}\n {of_another}"), "a copy to it by thread 1 of warp 2 was not waited for");
    let met = of_another.replace("xor", "bar.warp.sync -1;\n xor");
    check(&body().replace(COPIED, &format!("{COPIED}\n {met}\n bar.warp.sync -1;")));
    // A copy that was not told to arrive is still under way.
    refused(
        &format!("{COPY}\n         {COPIED}"),
        &format!("{COPIED}\n{COPY}"),
        "thread 31 of warp 2 was not waited for",
    );
}

#[test]
fn who_waits_for_ever_is_named() {
    let few = "waiting for the end of a phase of parity 0 of the mbarrier at byte 16 of shared memory, where 1 of 65 \
               arrivals are missing: warp 2";
    refused("mov.b32 %r3, 64;", "mov.b32 %r3, 65;", few);
    refused("[shared], 32;", "[shared], 64;", "where 32 of 64 arrivals are missing: warps 0, 1");
    refused("ret;\n         $L4:", "bar.sync 2, 64;\n         $L4:", "at barrier 2 of 64 threads: warp 2");
    // Not the parity before.
    refused("xor.b32 %r6, %r6, 1;", "", "no warp can go on");
    refused("[shared], 32;", "[shared], 16;", "32 threads arrive, and of 16 arrivals only 16 are missing");
    refused(COPIED, &format!("{COPIED}\n {COPIED}"), "of the mbarrier at byte 0");
}

#[test]
fn mbarriers_are_used_as_such() {
    let first = |text: &str| fault(&format!("setp.ne.u32 %p1, %r1, 0;\n @%p1 bra $L1;\n {text}\n$L1:"), 32, 1);
    let begin = "mbarrier.init.shared.b64 [%rd5+16], 32;";
    let lies = "and an mbarrier lies there";
    assert!(first(&format!("{begin}\n ld.shared.b32 %r3, [%rd5+20];")).contains(lies));
    assert!(first(&format!("{begin}\n st.shared.b16 [%rd5+16], %r3;")).contains(lies));
    assert!(first(&format!("{begin}\n {begin}")).contains(lies));
    assert!(first(&format!("{begin}\n cp.async.cg.shared.global [%rd5+16], [%rd1], 16;")).contains(lies));
    assert!(first("mbarrier.init.shared.b64 [%rd5+20], 32;").contains("is no multiple of that"));
    assert!(first("mbarrier.init.shared.b64 [%rd5+1024], 32;").contains("of which there are 1024"));
    assert!(first("mbarrier.init.shared.b64 [%rd5], 0;").contains("an mbarrier of 0 arrivals"));
    let none = "there is no mbarrier at byte 8 of shared memory";
    assert!(fault(&wait(1, "%rd5+8", "0"), 32, 1).contains(none));
    assert!(fault("mbarrier.arrive.shared.b64 _, [%rd5+8];", 32, 1).contains(none));
    assert!(fault("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%rd5+8];", 32, 1).contains(none));
    // Copies arrive for a whole warp.
    let some = "setp.lt.u32 %p3, %r1, 7;\n @%p3 cp.async.mbarrier.arrive.noinc.shared.b64 [%rd5+8];";
    assert!(fault(some, 32, 1).contains("only some threads of a group are to do this"));
    let apart = "cp.async.mbarrier.arrive.noinc.shared.b64 [%rd6];";
    assert!(fault(apart, 32, 1).contains("the threads of a warp have different addresses"));
    // Others have to know that it was made.
    let made = format!("setp.ne.u32 %p1, %r1, 0;\n @%p1 bra $L1;\n {begin}\n$L1:\n bar.sync 0;");
    let arrives = "setp.lt.u32 %p2, %r1, 32;\n @%p2 bra $L2;\n mbarrier.arrive.shared.b64 _, [%rd5+16];\n$L2:";
    let stores = "st.global.b32 [%rd4], %r1;";
    let well = format!("{made}\n {arrives}\n {}\n {stores}", wait(1, "%rd5+16", "0"));
    assert!(results(&well, 64, 1).is_ok());
    let unknown = fault(&well.replace("bar.sync 0;", ""), 64, 1);
    assert!(unknown.contains("thread 0 of warp 0 made the mbarrier at byte 16"), "{unknown}");
    assert!(fault(&well.replace(", 0;\n@!done", ", 2;\n@!done"), 64, 1).contains("a parity of 2"));
    assert!(fault(&well.replace(", 0;\n@!done", ", %r1;\n@!done"), 64, 1).contains("different parities"));
    // Before anybody arrived, the phase before has ended.
    assert!(results(&well.replace(arrives, "").replace(", 0;\n@!done", ", 1;\n@!done"), 64, 1).is_ok());
}

#[test]
fn a_barrier_of_some_warps_puts_those_in_an_order() {
    // Two warps of four exchange what they wrote.
    let some = "setp.ge.u32 %p1, %r1, 64;\n @%p1 bra $L1;\n st.shared.b32 [%rd6], %r1;\n bar.sync 1, 64;\n \
                xor.b32 %r3, %r1, 32;\n mul.wide.u32 %rd7, %r3, 4;\n add.s64 %rd8, %rd5, %rd7;\n \
                ld.shared.b32 %r4, [%rd8];\n st.global.b32 [%rd4], %r4;\n$L1:";
    for barrier in ["bar.cta.sync", "barrier.sync", "barrier.sync.aligned", "barrier.cta.sync.aligned"] {
        let results = results(&some.replace("bar.sync", barrier), 128, 1).unwrap();
        assert_eq!(results[..64], (0..64).map(|it| it ^ 32).collect::<Vec<_>>());
    }
    // Others go another way, and know nothing of it; nor do those know of them.
    let of_others = "setp.lt.u32 %p2, %r1, 64;\n @%p2 bra $L2;\n ld.shared.b32 %r3, [%rd5];\n$L2:";
    let race = fault(&format!("{some}\n {of_others}"), 128, 1);
    assert!(race.contains("is read, and thread 0 of warp 0 wrote it since the last barrier"), "{race}");
    assert!(results(&format!("{some}\n bar.sync 0;\n {of_others}"), 128, 1).is_ok());
    let another = format!("{some}\n setp.lt.u32 %p2, %r1, 64;\n @%p2 bra $L2;\n bar.sync 1, 64;\n$L2:\n {of_others}");
    let race = fault(
        &another
            .replace("@%p2 bra $L2;\n ld", "@%p2 bra $L3;\n ld")
            .replace("%r3, [%rd5];\n$L2:", "%r3, [%rd5];\n$L3:"),
        128,
        1,
    );
    assert!(race.contains("thread 0 of warp 0 wrote it"), "{race}");
    // The same holds in memory.
    let global = "setp.ge.u32 %p1, %r1, 64;\n @%p1 bra $L1;\n st.global.b32 [%rd4], %r1;\n bar.sync 1, 64;\n \
                  ld.global.b32 %r4, [%rd2+128];\n$L1:";
    assert!(results(global, 128, 1).is_ok());
    assert!(fault(&global.replace("bar.sync 1, 64;", ""), 128, 1).contains("was never written"));
    let by_others = format!("{global}\n setp.lt.u32 %p2, %r1, 64;\n @%p2 bra $L2;\n ld.global.b32 %r4, [%rd2];\n$L2:");
    assert!(fault(&by_others, 128, 1).contains("thread 0 wrote it since the last barrier"));
    // They have to agree.
    let differ =
        "setp.lt.u32 %p1, %r1, 32;\n @%p1 bra $L1;\n bar.sync 1, 64;\n bra.uni $L2;\n$L1:\n bar.sync 1, 96;\n$L2:";
    let differ = fault(differ, 96, 1);
    assert!(differ.contains("64 threads are to meet here, and 96 where warp 0 stands"), "{differ}");
    assert!(fault("bar.sync 3, 96;", 64, 1).contains("at barrier 3 of 96 threads: warps 0, 1"));
}

#[test]
fn scopes_have_names_of_their_own() {
    let body = "mov.b32 %r9, 0;\n{\n\t.reg .b32 %r9, it;\n\t.reg .b64 wide;\n\t.reg .pred p;\n mov.b32 it, 5;\n\
                mov.b32 %r9, it;\n\tcvt.u64.u32 wide, %r9;\n{\n.reg .b32 it;\nmov.b32 it, 7;\n}\n\
                cvt.u32.u64 %r8, wide;\n\tadd.s32 %r8, %r8, it;\n\tsetp.eq.u32 p, %r8, 10;\n\t@!p mov.b32 %r8, 0;\n\t}\n\
                add.s32 %r9, %r9, %r8;";
    assert_eq!(super::computed(body), vec![10; 32]);
    let text = |line: &str| format!(".visible .entry kernel(\n\t.param .b8 p[16]\n)\n{{\n{line}\n}}\n");
    for (line, what) in [
        ("{\n.reg .pred done;\n}\n@!done bra $L1;\n$L1:\nret;", "`done` is no predicate"),
        ("{\n.reg .b32 it;\nmov.b64 %rd1, it;\n}", "`it` is no register of 64 bits"),
        ("{\n.reg .b32 it;\n.reg .b64 it;\n}", "`it` is declared twice"),
        ("{\n.reg .b128 it;\n}", "registers of type `.b128` are not known"),
        ("$L1:\n{\n$L1:\n}", "there are two labels `$L1`"),
        ("bar.sync 16;", "barriers have numbers up to 15"),
        ("bar.sync 1, 48;", "whole warps meet at a barrier"),
        ("bar.arrive 1, 64;", "`bar.arrive` is not known"),
        ("setmaxnreg.inc.sync.aligned.u32 20;", "20 registers are no multiple of 8 from 24 to 256"),
        ("setmaxnreg.dec.sync.aligned.u32 264;", "264 registers are no multiple of 8 from 24 to 256"),
        ("setmaxnreg.dec.sync.aligned.u32 36;", "36 registers are no multiple of 8 from 24 to 256"),
        ("cp.async.mbarrier.arrive.shared.b64 [%rd1];", "`cp.async.mbarrier.arrive.shared.b64` is not known"),
        ("mbarrier.arrive.shared.b64 [%rd1];", "2 operands are expected"),
    ] {
        let why = Module::parse(&text(line)).expect_err(line);
        assert!(why.contains(what), "{why}");
    }
}

/// What LLVM prints.
#[test]
fn text_of_llvm_is_read() {
    let text = "
.visible .entry kernel(
	.param .align 8 .b8 kernel_param_0[8]
)
{
	.reg .b32 	%r<4>;
	.reg .b64 	%rd<5>;

// %bb.0:
	mov.b32 	%r2, 0;
	mov.b32 	%r3, 32;
	mov.u32 	%r4, %tid.x;
	setp.ne.b32 	%p1, %r4, 0;
	@%p1 bra 	$L__BB0_2;
	mbarrier.init.shared.b64 	[shared+16], %r3;
$L__BB0_2:
	mov.b64 	%rd1, shared;
	bar.sync 	0;
	bar.sync 	1, 32;
	add.s64 	%rd3, %rd1, 16;
	mbarrier.arrive.shared.b64 	%rd4, [%rd3];
	cvt.u32.u64 	%r1, %rd3;
	// begin inline asm
	{
.reg .pred done;
arrivals_0:
mbarrier.try_wait.parity.shared::cta.b64 done, [%r1], %r2;
@!done bra arrivals_0;
}
	// end inline asm
	cp.async.mbarrier.arrive.noinc.shared.b64 	[%rd3];
	// begin inline asm
	{
.reg .pred done;
arrivals_1:
mbarrier.try_wait.parity.shared::cta.b64 done, [%r1], 1;
@!done bra arrivals_1;
}
	// end inline asm
	ret;
                                        // -- End function
}
.visible .entry other(
	.param .align 8 .b8 kernel_param_0[8]
)
{
	ret;
}
";
    let module = Module::parse(text).unwrap();
    for name in ["kernel", "other"] {
        let launch = Launch {
            kernel: module.kernel(name).expect("it is there"),
            blocks: [3, 1, 1],
            threads: 32,
            shared_bytes: 64,
            unwritten: NOT_A_NUMBER,
            parameter: &[0; 8],
        };
        run(&launch, &Memory::new(), 1).unwrap();
    }
}
