//! The functions of the language by name, and what people call them elsewhere. In: a name; out: a function or a hint.

use crate::program::{Binary, Reduce, Unary};

/// A function of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Of one value, elementwise.
    Unary(Unary),
    /// Of two values, elementwise.
    Binary(Binary),
    /// Over an axis.
    Reduce(Reduce),
    /// `max`: of two values, or over an axis.
    Max,
    /// `rename(x, K -> L)`
    Rename,
    /// `stop_gradient(x)`
    StopGradient,
}

const FUNCTIONS: [(&str, Function); 25] = [
    ("exp", Function::Unary(Unary::Exp)),
    ("exp2", Function::Unary(Unary::Exp2)),
    ("log", Function::Unary(Unary::Log)),
    ("sqrt", Function::Unary(Unary::Sqrt)),
    ("abs", Function::Unary(Unary::Abs)),
    ("sign", Function::Unary(Unary::Sign)),
    ("sigmoid", Function::Unary(Unary::Sigmoid)),
    ("logsigmoid", Function::Unary(Unary::LogSigmoid)),
    ("softplus", Function::Unary(Unary::Softplus)),
    ("silu", Function::Unary(Unary::Silu)),
    ("tanh", Function::Unary(Unary::Tanh)),
    ("elu", Function::Unary(Unary::Elu)),
    ("relu", Function::Unary(Unary::Relu)),
    ("gelu", Function::Unary(Unary::Gelu)),
    ("sin", Function::Unary(Unary::Sin)),
    ("cos", Function::Unary(Unary::Cos)),
    ("square", Function::Unary(Unary::Square)),
    ("min", Function::Binary(Binary::Min)),
    ("max", Function::Max),
    ("sum", Function::Reduce(Reduce::Sum)),
    ("mean", Function::Reduce(Reduce::Mean)),
    ("softmax", Function::Reduce(Reduce::Softmax)),
    ("l2norm", Function::Reduce(Reduce::L2Norm)),
    ("rename", Function::Rename),
    ("stop_gradient", Function::StopGradient),
];

/// The function of this name.
pub fn find(name: &str) -> Option<Function> {
    FUNCTIONS.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
}

/// The names of all functions.
pub fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|(name, _)| *name)
}

/// The name of a function of one value.
pub fn name_of_unary(function: Unary) -> &'static str {
    let found = FUNCTIONS.iter().find(|(_, known)| *known == Function::Unary(function));
    found.map_or("-", |(name, _)| name)
}

/// The name of a reduction.
pub fn name_of_reduce(function: Reduce) -> &'static str {
    match function {
        Reduce::Sum => "sum",
        Reduce::Mean => "mean",
        Reduce::Max => "max",
        Reduce::Softmax => "softmax",
        Reduce::L2Norm => "l2norm",
    }
}

/// What another notation's function is called here: the name, if it is one, and a sentence.
pub fn foreign(name: &str) -> Option<(Option<&'static str>, &'static str)> {
    Some(match name {
        "ln" => (Some("log"), "the natural logarithm is `log`"),
        "swish" => (Some("silu"), "x · sigmoid(x) is `silu`"),
        "norm" | "l2_norm" | "normalize" => (Some("l2norm"), "x divided by its norm over an axis is `l2norm(x, K)`"),
        "log_sigmoid" => (Some("logsigmoid"), "it is written `logsigmoid`"),
        "detach" | "stopgrad" | "stop_grad" | "sg" => (Some("stop_gradient"), "it is written `stop_gradient`"),
        "amax" | "maximum" => (Some("max"), "`max(a, b)` of two values, `max(x, K)` over an axis"),
        "amin" | "minimum" => (Some("min"), "`min(a, b)` of two values"),
        "average" => (Some("mean"), "it is written `mean(x, K)`"),
        "sgn" => (Some("sign"), "it is written `sign`"),
        "pow" | "power" => (None, "a power is written `x ^ p`"),
        "matmul" | "dot" | "einsum" | "inner" | "mm" | "bmm" | "matvec" => {
            (None, "`a @ b` multiplies and sums over every axis that both have")
        }
        "outer" | "ger" | "kron" => (None, "`k * v` with k: [K] and v: [V] is the outer product [K, V]"),
        "transpose" | "permute" | "swapaxes" | "moveaxis" => {
            (None, "axes have names, so there is nothing to transpose")
        }
        "diag" | "Diag" => {
            (None, "a diagonal matrix times a state is an elementwise product: `exp(g) * S` with g: [K] scales rows")
        }
        "reshape" | "view" | "unsqueeze" | "squeeze" | "expand" | "broadcast_to" => {
            (None, "axes align by name, so shapes need no care")
        }
        "log1p" => (None, "write `log(1 + x)`"),
        "expm1" => (None, "write `exp(x) - 1`"),
        "rsqrt" => (None, "write `1 / sqrt(x)` or `x ^ -0.5`"),
        "reciprocal" => (None, "write `1 / x`"),
        "clip" | "clamp" => (None, "write `min(max(x, lo), hi)`"),
        "where" | "select" | "cond" => {
            (None, "there are no branches; `max`, `min`, `sign` and `relu` are there for cut-offs")
        }
        "zeros" | "ones" | "full" | "zeros_like" => {
            (None, "a state begins at zero by itself, and a number spreads over any axes")
        }
        "cumsum" | "cumprod" | "logcumsumexp" | "scan" => {
            (None, "what runs over time is a state: `state c: [K]` and `c = c + x`")
        }
        "logsumexp" => (None, "write `log(sum(exp(x), K))`"),
        "prod" => (None, "there is no product over an axis; `exp(sum(log(x), K))` for positive x"),
        "range" => (None, "a loop runs over an axis: `for r in R { … }`"),
        "rms_norm" | "rmsnorm" | "RMSNorm" => (None, "write `x / sqrt(mean(x * x, K) + 1e-6)`"),
        _ => return None,
    })
}
