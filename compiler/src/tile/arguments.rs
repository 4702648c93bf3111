//! One list of arguments for kernels that are called together.
//!
//! Comes in: kernels that run one after another on the same tensors. Goes out: the same kernels, all with the same
//! arguments in the same order, so that one parameter serves them all. A kernel does nothing with an argument it did not
//! have before. Never changes what a kernel computes.

use super::ir::{Arg, ArgId, Expr, Kernel, Memory, Place, Stmt};
use chunkwise_abi::Access;

/// Gives the kernels one list of arguments: all they had, in order of appearance, then those named in `last`, in that
/// order. Gives that list; in it a tensor is written if any of the kernels writes it, while in each kernel it is what
/// that kernel does with it.
pub fn share_arguments(kernels: &mut [Kernel], last: &[&str]) -> Vec<Arg> {
    let mut all: Vec<Arg> = Vec::new();
    for arg in kernels.iter().flat_map(|kernel| &kernel.args) {
        match all.iter_mut().find(|other| other.name == arg.name) {
            Some(known) if arg.access == Access::Write => known.access = Access::Write,
            Some(_) => {}
            None => all.push(arg.clone()),
        }
    }
    // Stable: what is not named stays in order.
    all.sort_by_key(|arg| last.iter().position(|name| *name == arg.name).map_or(0, |at| at + 1));
    for kernel in kernels {
        let position = |arg: &Arg| all.iter().position(|other| other.name == arg.name).expect("all are listed");
        let new: Vec<ArgId> = kernel.args.iter().map(|arg| ArgId(position(arg) as u32)).collect();
        let own = std::mem::take(&mut kernel.args);
        kernel.args = all.iter().map(|arg| Arg { access: Access::Read, ..arg.clone() }).collect();
        for (arg, id) in own.into_iter().zip(&new) {
            kernel.args[id.0 as usize] = arg;
        }
        kernel.body.iter_mut().for_each(|stmt| rename(stmt, &new));
    }
    all
}

fn rename(stmt: &mut Stmt, new: &[ArgId]) {
    match stmt {
        Stmt::For { body, .. } | Stmt::Lanes { body, .. } | Stmt::If { body, .. } => {
            body.iter_mut().for_each(|stmt| rename(stmt, new));
        }
        Stmt::Local { value, .. } | Stmt::Assign { value, .. } => rename_loads(value, new),
        Stmt::Store { place, value } | Stmt::ReduceLanes { place, value, .. } => {
            rename_place(place, new);
            rename_loads(value, new);
        }
        Stmt::Matmul(_) => {}
    }
}

fn rename_loads(value: &mut Expr, new: &[ArgId]) {
    match value {
        Expr::Const(_) | Expr::Local(_) => {}
        Expr::Load(place) => rename_place(place, new),
        Expr::Unary(_, x) => rename_loads(x, new),
        Expr::Binary(_, a, b) | Expr::Select(_, a, b) => [a, b].into_iter().for_each(|x| rename_loads(x, new)),
        Expr::SelectValue(_, a, b, c, d) => [a, b, c, d].into_iter().for_each(|x| rename_loads(x, new)),
    }
}

fn rename_place(place: &mut Place, new: &[ArgId]) {
    match &mut place.memory {
        Memory::Arg(arg) => *arg = new[arg.0 as usize],
        Memory::Buffer(_) => {}
    }
}
