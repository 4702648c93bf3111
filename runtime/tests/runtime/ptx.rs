//! The recurrence of `recurrence.rs` as PTX written by hand, addressed exactly as the contract for GPUs says: a state
//! pass and an output kernel that are handed a tensor in between, and a backward that keeps states in its workspace.

use crate::recurrence::{CHUNK, V, signature};
use chunkwise_runtime::abi::gpu::{GpuKernel, GpuModule, GpuRecurrence, Grid, TENSORS_AT, call_bytes};
use chunkwise_runtime::abi::{Access, ArgSignature, DType, KernelSignature, Role};
use std::fmt::Write;

const HEAD: &str = ".version 7.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n";
/// Where the states lie in dynamic shared memory: beyond what a block gets without asking.
const STATES_AT: u32 = 60_000;

/// A kernel's text: names for the call, the item, its tokens and its tensors; then `body`.
pub fn entry(symbol: &str, roles: &[Role], grid: Grid, body: &str) -> String {
    let mut text = format!(".visible .entry {symbol}(.param .align 8 .b8 call[{}])\n{{\n", call_bytes(roles.len()));
    text.push_str(
        "  .reg .pred packed, first, done, odd;\n  .reg .b32 n, h, heads, block, thread;\n  .reg .f32 x, y, z, w, \
         w_adj, q_adj, k_adj;\n  .reg .f32 s<4>, a<4>, b<4>, c<4>;\n  .reg .b64 t, u, at, from, length, start, \
         offsets, own, group, stride, item, head64, heads64, chunk, scratch, end;\n",
    );
    text.push_str(match grid {
        Grid::Item => {
            "  ld.param.u32 heads, [call+4];\n  mov.u32 block, %ctaid.x;\n  div.u32 n, block, heads;\n  rem.u32 h, \
             block, heads;\n"
        }
        Grid::Chunk { .. } | Grid::Blocks { .. } | Grid::Spans { .. } => {
            "  ld.param.u32 heads, [call+4];\n  mov.u32 block, %ctaid.x;\n  mov.u32 h, %ctaid.y;\n  mov.u32 n, \
             %ctaid.z;\n  cvt.u64.u32 chunk, block;\n"
        }
    });
    text.push_str(
        "  mov.u32 thread, %tid.x;\n  setp.ne.u32 first, thread, 0;\n  @first ret;\n  cvt.u64.u32 item, n;\n  \
         cvt.u64.u32 head64, h;\n  cvt.u64.u32 heads64, heads;\n  ld.param.u64 length, [call+8];\n  ld.param.u64 \
         offsets, [call+24];\n  mul.lo.u64 start, item, length;\n  setp.ne.u64 packed, offsets, 0;\n  @!packed bra \
         addressed;\n  shl.b64 at, item, 3;\n  add.u64 at, at, offsets;\n  ld.global.u64 start, [at];\n  \
         ld.global.u64 length, [at+8];\n  sub.u64 length, length, start;\naddressed:\n",
    );
    for (i, role) in roles.iter().enumerate() {
        let at = TENSORS_AT + 40 * i;
        write!(
            text,
            "  .reg .b64 base{i}, step{i};\n  ld.param.u64 own, [call+{}];\n  div.u64 group, heads64, own;\n  div.u64 \
             own, head64, group;\n  ld.param.u64 stride, [call+{}];\n  mul.lo.u64 base{i}, own, stride;\n  \
             ld.param.u64 step{i}, [call+{}];\n  ld.param.u64 stride, [call+{}];\n",
            at + 32,
            at + 24,
            at + 16,
            at + 8
        )
        .unwrap();
        match role {
            Role::Token => text.push_str(&format!(
                "  mul.lo.u64 own, item, stride;\n  @packed mul.lo.u64 own, start, step{i};\n  add.u64 base{i}, \
                 base{i}, own;\n"
            )),
            Role::Sequence => {
                text.push_str(&format!("  mad.lo.u64 base{i}, item, stride, base{i};\n"));
            }
            Role::Head => {}
            Role::Chunk(tokens) => text.push_str(&format!(
                "  div.u64 own, start, {tokens};\n  add.u64 own, own, item;\n  mad.lo.u64 base{i}, own, step{i}, \
                 base{i};\n"
            )),
        }
        write!(
            text,
            "  ld.param.u64 own, [call+{at}];\n  shl.b64 base{i}, base{i}, 2;\n  add.u64 base{i}, base{i}, own;\n  \
             shl.b64 step{i}, step{i}, 2;\n"
        )
        .unwrap();
    }
    text + body + "  ret;\n}\n"
}

/// `at` = where position `t` of tensor `i` starts.
fn address(i: usize, t: &str) -> String {
    format!("  mad.lo.u64 at, {t}, step{i}, base{i};\n")
}

fn each(line: impl Fn(usize) -> String) -> String {
    (0..V).map(line).collect()
}

/// Arguments: q k v w init out.o final.S, saved.S if `saving`, and last the states of every token.
fn state_pass(saving: bool) -> String {
    let (saved, states) = (7, if saving { 8 } else { 7 });
    let mut body = "  .reg .b32 shared;\n  mov.u32 shared, memory;\n  ld.global.f32 w, [base3];\n".to_string();
    body += &each(|j| {
        let at = STATES_AT as usize + 4 * j;
        format!("  ld.global.f32 x, [base4+{}];\n  st.shared.f32 [shared+{at}], x;\n", 4 * j)
    });
    body += "  mov.u64 t, 0;\nnext:\n  setp.ge.u64 done, t, length;\n  @done bra over;\n";
    body += &each(|j| format!("  ld.shared.f32 s{j}, [shared+{}];\n", STATES_AT as usize + 4 * j));
    if saving {
        body += &format!(
            "  rem.u64 u, t, {CHUNK};\n  setp.ne.u64 odd, u, 0;\n  @odd bra kept;\n  div.u64 u, t, {CHUNK};\n"
        );
        body += &address(saved, "u");
        body += &each(|j| format!("  st.global.f32 [at+{}], s{j};\n", 4 * j));
        body += "kept:\n";
    }
    body += &(address(1, "t") + "  ld.global.f32 y, [at];\n" + &address(2, "t"));
    body += &each(|j| {
        let (at, of) = (STATES_AT as usize + 4 * j, 4 * j);
        format!(
            "  ld.global.f32 x, [at+{of}];\n  mul.f32 x, x, y;\n  fma.rn.f32 s{j}, s{j}, w, x;\n  st.shared.f32 \
             [shared+{at}], s{j};\n"
        )
    });
    body += &address(states, "t");
    body += &each(|j| format!("  st.global.f32 [at+{}], s{j};\n", 4 * j));
    body += "  add.u64 t, t, 1;\n  bra next;\nover:\n";
    body += &each(|j| {
        let at = STATES_AT as usize + 4 * j;
        format!("  ld.shared.f32 x, [shared+{at}];\n  st.global.f32 [base6+{}], x;\n", 4 * j)
    });
    body
}

/// o = q·S for the tokens of one chunk.
fn outputs(saving: bool) -> String {
    let states = if saving { 8 } else { 7 };
    let mut body =
        format!("  mul.lo.u64 t, chunk, {CHUNK};\n  add.u64 end, t, {CHUNK};\n  min.u64 end, end, length;\n");
    body += "next:\n  setp.ge.u64 done, t, end;\n  @done bra over;\n";
    body += &(address(0, "t") + "  ld.global.f32 y, [at];\n" + &address(states, "t"));
    body += &each(|j| format!("  ld.global.f32 s{j}, [at+{}];\n  mul.f32 s{j}, s{j}, y;\n", 4 * j));
    body += &address(5, "t");
    body += &each(|j| format!("  st.global.f32 [at+{}], s{j};\n", 4 * j));
    body + "  add.u64 t, t, 1;\n  bra next;\nover:\n"
}

/// Arguments: q k v w saved.S grad_out.o grad_final.S, grad.q grad.k grad.v grad.w grad_init.S.
fn backward() -> String {
    let mut body = "  .reg .b64 space;\n  ld.param.u64 scratch, [call+16];\n  cvt.u64.u32 space, block;\n  mad.lo.u64 \
                    scratch, space, 256, scratch;\n  ld.global.f32 w, [base3];\n  mov.f32 w_adj, 0f00000000;\n"
        .to_string();
    body += &each(|j| format!("  ld.global.f32 a{j}, [base6+{}];\n", 4 * j));
    body += "  mov.u64 t, length;\nnext:\n  setp.eq.u64 done, t, 0;\n  @done bra over;\n  sub.u64 t, t, 1;\n";
    body += &format!("  div.u64 u, t, {CHUNK};\n  mul.lo.u64 from, u, {CHUNK};\n");
    // The states before (at 0) and after (at 64) the token, again from the chunk's first.
    body += &address(4, "u");
    body += &each(|j| format!("  ld.global.f32 x, [at+{}];\n  st.global.f32 [scratch+{}], x;\n", 4 * j, 64 + 4 * j));
    body += "again:\n";
    body += &(address(1, "from") + "  ld.global.f32 y, [at];\n" + &address(2, "from"));
    body += &each(|j| {
        format!(
            "  ld.global.f32 b{j}, [scratch+{after}];\n  st.global.f32 [scratch+{before}], b{j};\n  ld.global.f32 x, \
             [at+{before}];\n  mul.f32 x, x, y;\n  fma.rn.f32 c{j}, b{j}, w, x;\n  st.global.f32 [scratch+{after}], \
             c{j};\n",
            before = 4 * j,
            after = 64 + 4 * j
        )
    });
    body += "  add.u64 from, from, 1;\n  setp.le.u64 done, from, t;\n  @done bra again;\n  mov.f32 q_adj, \
             0f00000000;\n  mov.f32 k_adj, 0f00000000;\n";
    body += &(address(0, "t") + "  ld.global.f32 y, [at];\n" + &address(1, "t") + "  ld.global.f32 z, [at];\n");
    for j in 0..V {
        let of = 4 * j;
        body += &address(5, "t");
        body += &format!(
            "  ld.global.f32 x, [at+{of}];\n  fma.rn.f32 a{j}, x, y, a{j};\n  ld.global.f32 c{j}, \
             [scratch+{}];\n  fma.rn.f32 q_adj, x, c{j}, q_adj;\n",
            64 + of
        );
        body += &address(2, "t");
        body += &format!("  ld.global.f32 x, [at+{of}];\n  fma.rn.f32 k_adj, a{j}, x, k_adj;\n");
        body += &address(9, "t");
        body += &format!(
            "  mul.f32 x, a{j}, z;\n  st.global.f32 [at+{of}], x;\n  ld.global.f32 b{j}, [scratch+{of}];\n  fma.rn.f32 \
             w_adj, a{j}, b{j}, w_adj;\n  mul.f32 a{j}, a{j}, w;\n"
        );
    }
    body += &(address(7, "t") + "  st.global.f32 [at], q_adj;\n" + &address(8, "t") + "  st.global.f32 [at], k_adj;\n");
    body += "  bra next;\nover:\n  st.global.f32 [base10], w_adj;\n";
    body + &each(|j| format!("  st.global.f32 [base11+{}], a{j};\n", 4 * j))
}

fn states() -> ArgSignature {
    let (inner, axes) = (vec![V], vec!["V".to_string()]);
    ArgSignature { name: "states".into(), dtype: DType::F32, role: Role::Token, inner, axes, access: Access::Write }
}

/// A module of one kernel a block of 32 threads.
pub fn module(
    signature: KernelSignature,
    temporaries: Vec<ArgSignature>,
    kernels: &[(&str, Grid, String)],
) -> GpuModule {
    let roles: Vec<Role> = signature.args.iter().chain(&temporaries).map(|arg| arg.role).collect();
    let entries = kernels.iter().map(|(symbol, grid, body)| entry(symbol, &roles, *grid, body));
    let ptx = HEAD.to_string() + &entries.collect::<String>();
    let kernels = kernels.iter().map(|(symbol, grid, body)| GpuKernel {
        symbol: symbol.to_string(),
        threads: 32,
        shared_bytes: if body.contains("shared") { STATES_AT + 64 } else { 0 },
        workspace_bytes: if body.contains("scratch") { 256 } else { 0 },
        grid: *grid,
    });
    GpuModule { arch: "sm_80".into(), ptx, kernels: kernels.collect(), signature, temporaries }
}

/// The whole recurrence.
pub fn recurrence() -> GpuRecurrence {
    let signature = signature();
    let chunk = Grid::Chunk { tokens: CHUNK as u32 };
    let of = |kernel: &Option<KernelSignature>, temporaries, kernels: &[(&str, Grid, String)]| {
        Some(module(kernel.clone().unwrap(), temporaries, kernels))
    };
    let forward = |saving: bool| [("pass", Grid::Item, state_pass(saving)), ("outputs", chunk, outputs(saving))];
    GpuRecurrence {
        forward: of(&signature.forward, vec![states()], &forward(false)),
        forward_saving: of(&signature.forward_saving, vec![states()], &forward(true)),
        backward: of(&signature.backward, vec![], &[("gradients", Grid::Item, backward())]),
        signature,
    }
}
