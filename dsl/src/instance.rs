//! A checked program with its sizes and constants settled.
//!
//! Comes from a [`Program`], sizes by axis name and overrides by constant name; goes to the interpreters and the
//! compiler, which may then rely on it: every size is at least 1, every literal index lies inside its axis, renamed
//! axes agree, constants are finite, and no value of one token has more than 2³¹ elements. It never looks at data.

use std::collections::BTreeMap;
use std::fmt;

use crate::program::{AxisId, ConstId, ExprId, ExprKind, Index, Program};
use crate::suggest::nearest;
use crate::value;

/// The most elements that one value of one token and head may have.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// A program whose axes have sizes and whose constants have values.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance<'p> {
    /// The program.
    pub program: &'p Program,
    /// Size of each axis, by [`AxisId`].
    pub sizes: Vec<usize>,
    /// Value of each constant, by [`ConstId`].
    pub consts: Vec<f64>,
}

/// Why sizes and constants do not fit a program.
#[derive(Clone, Debug, PartialEq)]
pub enum InstanceError {
    /// A size was given for a name that is no axis.
    UnknownAxis {
        /// The name given.
        name: String,
        /// An axis with a similar name.
        similar: Option<String>,
        /// The axes there are.
        axes: Vec<String>,
    },
    /// An axis has no size.
    MissingSize {
        /// The axis.
        axis: String,
    },
    /// An axis has size 0.
    ZeroSize {
        /// The axis.
        axis: String,
    },
    /// A value was given for a name that is no constant.
    UnknownConst {
        /// The name given.
        name: String,
        /// A constant with a similar name.
        similar: Option<String>,
        /// The constants there are.
        consts: Vec<String>,
    },
    /// A constant is NaN or infinite.
    ConstNotFinite {
        /// The constant.
        name: String,
        /// Its value.
        value: f64,
        /// Whether the caller gave the value, or the program computed it.
        given: bool,
    },
    /// A literal index lies outside its axis.
    IndexOutOfRange {
        /// The position written.
        index: usize,
        /// The axis.
        axis: String,
        /// Its size.
        size: usize,
    },
    /// `rename` joins two axes of different size.
    RenameSizes {
        /// The axis that disappears.
        from: String,
        /// Its size.
        from_size: usize,
        /// The axis that takes its place.
        to: String,
        /// Its size.
        to_size: usize,
    },
    /// A value has too many elements.
    TooLarge {
        /// What it is, in words: "state S", "an intermediate value".
        what: String,
        /// Its axes with their sizes.
        shape: Vec<(String, usize)>,
    },
}

impl fmt::Display for InstanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstanceError::UnknownAxis { name, similar, axes } => {
                write!(f, "there is no axis `{name}`")?;
                offer(f, similar, axes, "axes")
            }
            InstanceError::MissingSize { axis } => {
                write!(f, "axis `{axis}` has no size; give one, for example {axis}=64")
            }
            InstanceError::ZeroSize { axis } => write!(f, "axis `{axis}` has size 0; every axis needs at least 1"),
            InstanceError::UnknownConst { name, similar, consts } => {
                write!(f, "there is no constant `{name}`")?;
                offer(f, similar, consts, "constants")
            }
            InstanceError::ConstNotFinite { name, value, given: true } => {
                write!(f, "constant `{name}` was given as {value}; it has to be a finite number")
            }
            InstanceError::ConstNotFinite { name, value, given: false } => {
                write!(f, "constant `{name}` comes out as {value} at these sizes; it has to be a finite number")
            }
            InstanceError::IndexOutOfRange { index, axis, size } => write!(
                f,
                "index {index} lies outside axis `{axis}`, which has size {size} here (positions 0 to {})",
                size.saturating_sub(1)
            ),
            InstanceError::RenameSizes { from, from_size, to, to_size } => write!(
                f,
                "`rename` makes axis `{from}` of size {from_size} into axis `{to}` of size {to_size}; the sizes have to be equal"
            ),
            InstanceError::TooLarge { what, shape } => {
                let shape: Vec<String> = shape.iter().map(|(axis, size)| format!("{axis}={size}")).collect();
                write!(f, "{what} would have more than 2^31 elements for every token and head ({})", shape.join(", "))
            }
        }
    }
}

fn offer(f: &mut fmt::Formatter<'_>, similar: &Option<String>, known: &[String], plural: &str) -> fmt::Result {
    match similar {
        Some(similar) => write!(f, "; did you mean `{similar}`?"),
        None if known.is_empty() => write!(f, "; the recurrence declares no {plural}"),
        None => write!(f, "; the {plural} are {}", known.join(", ")),
    }
}

impl std::error::Error for InstanceError {}

impl<'p> Instance<'p> {
    /// Settles sizes and constants, or says everything that does not fit.
    pub fn new(
        program: &'p Program,
        sizes: &BTreeMap<String, usize>,
        overrides: &BTreeMap<String, f64>,
    ) -> Result<Instance<'p>, Vec<InstanceError>> {
        let mut errors = Vec::new();
        let axis_sizes = settle_sizes(program, sizes, &mut errors);
        check_names_of_consts(program, overrides, &mut errors);
        // The remaining questions are about numbers, and have no answer while a size is missing.
        if !errors.is_empty() {
            return Err(errors);
        }
        let consts = settle_consts(program, &axis_sizes, overrides, &mut errors);
        check_expressions(program, &axis_sizes, &mut errors);
        check_elements(program, &axis_sizes, &mut errors);
        if errors.is_empty() { Ok(Instance { program, sizes: axis_sizes, consts }) } else { Err(errors) }
    }

    /// The size of an axis.
    pub fn size(&self, axis: AxisId) -> usize {
        self.sizes[axis.index()]
    }

    /// The sizes of several axes, in the order given.
    pub fn shape(&self, axes: &[AxisId]) -> Vec<usize> {
        axes.iter().map(|&axis| self.size(axis)).collect()
    }

    /// The value of a constant.
    pub fn const_value(&self, id: ConstId) -> f64 {
        self.consts[id.index()]
    }
}

fn settle_sizes(program: &Program, sizes: &BTreeMap<String, usize>, errors: &mut Vec<InstanceError>) -> Vec<usize> {
    for name in sizes.keys() {
        if program.axis_named(name).is_none() {
            let known = || program.axes.iter().map(|axis| axis.name.as_str());
            errors.push(InstanceError::UnknownAxis {
                name: name.clone(),
                similar: nearest(name, known()).map(str::to_owned),
                axes: known().map(str::to_owned).collect(),
            });
        }
    }
    let mut settled = Vec::with_capacity(program.axes.len());
    for axis in &program.axes {
        let size = sizes.get(&axis.name).copied();
        match size {
            None => errors.push(InstanceError::MissingSize { axis: axis.name.clone() }),
            Some(0) => errors.push(InstanceError::ZeroSize { axis: axis.name.clone() }),
            Some(_) => {}
        }
        settled.push(size.unwrap_or(0));
    }
    settled
}

fn check_names_of_consts(program: &Program, overrides: &BTreeMap<String, f64>, errors: &mut Vec<InstanceError>) {
    for (name, &value) in overrides {
        let known = || program.consts.iter().map(|constant| constant.name.as_str());
        if !known().any(|known| known == name) {
            errors.push(InstanceError::UnknownConst {
                name: name.clone(),
                similar: nearest(name, known()).map(str::to_owned),
                consts: known().map(str::to_owned).collect(),
            });
        } else if !value.is_finite() {
            errors.push(InstanceError::ConstNotFinite { name: name.clone(), value, given: true });
        }
    }
}

fn settle_consts(
    program: &Program,
    sizes: &[usize],
    overrides: &BTreeMap<String, f64>,
    errors: &mut Vec<InstanceError>,
) -> Vec<f64> {
    let mut consts = Vec::with_capacity(program.consts.len());
    for constant in &program.consts {
        let value = match overrides.get(&constant.name) {
            Some(&value) => value,
            None => {
                let value = evaluate(program, constant.value, sizes, &consts);
                // One that only inherits an earlier failure would repeat the same news.
                if !value.is_finite() && consts.iter().all(|earlier: &f64| earlier.is_finite()) {
                    errors.push(InstanceError::ConstNotFinite { name: constant.name.clone(), value, given: false });
                }
                value
            }
        };
        consts.push(value);
    }
    consts
}

/// The value of an expression without axes. What a constant may not contain gives NaN, which the caller refuses.
fn evaluate(program: &Program, id: ExprId, sizes: &[usize], consts: &[f64]) -> f64 {
    match &program.expr(id).kind {
        ExprKind::Number(value) => *value,
        ExprKind::AxisSize(axis) => sizes[axis.index()] as f64,
        ExprKind::Const(id) => consts.get(id.index()).copied().unwrap_or(f64::NAN),
        ExprKind::Unary(function, operand) => value::unary(*function, evaluate(program, *operand, sizes, consts)),
        ExprKind::Binary(function, lhs, rhs) => {
            value::binary(*function, evaluate(program, *lhs, sizes, consts), evaluate(program, *rhs, sizes, consts))
        }
        ExprKind::StopGradient(operand) => evaluate(program, *operand, sizes, consts),
        ExprKind::Tensor(_)
        | ExprKind::State(_)
        | ExprKind::Local(_)
        | ExprKind::LoopIndex(_)
        | ExprKind::Index { .. }
        | ExprKind::Contract { .. }
        | ExprKind::Reduce(..)
        | ExprKind::Rename { .. } => f64::NAN,
    }
}

fn check_expressions(program: &Program, sizes: &[usize], errors: &mut Vec<InstanceError>) {
    let name = |axis: AxisId| program.axes[axis.index()].name.clone();
    for expr in &program.exprs {
        let error = match &expr.kind {
            ExprKind::Index { axis, index: Index::Literal(index), .. } if *index >= sizes[axis.index()] => {
                InstanceError::IndexOutOfRange { index: *index, axis: name(*axis), size: sizes[axis.index()] }
            }
            ExprKind::Rename { from, to, .. } if sizes[from.index()] != sizes[to.index()] => {
                InstanceError::RenameSizes {
                    from: name(*from),
                    from_size: sizes[from.index()],
                    to: name(*to),
                    to_size: sizes[to.index()],
                }
            }
            ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::State(_)
            | ExprKind::Local(_)
            | ExprKind::LoopIndex(_)
            | ExprKind::Index { .. }
            | ExprKind::Unary(..)
            | ExprKind::Binary(..)
            | ExprKind::Contract { .. }
            | ExprKind::Reduce(..)
            | ExprKind::Rename { .. }
            | ExprKind::StopGradient(_) => continue,
        };
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
}

fn check_elements(program: &Program, sizes: &[usize], errors: &mut Vec<InstanceError>) {
    let declared = (program.tensors.iter().map(|tensor| (format!("`{}`", tensor.name), &tensor.axes)))
        .chain(program.states.iter().map(|state| (format!("state `{}`", state.name), &state.axes)))
        .chain(program.outputs.iter().map(|output| (format!("output `{}`", output.name), &output.axes)))
        .chain(program.locals.iter().map(|local| (format!("`{}`", local.name), &local.axes)));
    for (what, axes) in declared {
        if !fits(axes, sizes) {
            errors.push(InstanceError::TooLarge { what, shape: shape(program, axes, sizes) });
        }
    }
    if errors.is_empty()
        && let Some(expr) = program.exprs.iter().find(|expr| !fits(&expr.axes, sizes))
    {
        let shape = shape(program, &expr.axes, sizes);
        errors.push(InstanceError::TooLarge { what: "an intermediate value".to_owned(), shape });
    }
}

fn fits(axes: &[AxisId], sizes: &[usize]) -> bool {
    axes.iter()
        .try_fold(1usize, |product, axis| product.checked_mul(sizes[axis.index()]))
        .is_some_and(|product| product <= MAX_ELEMENTS)
}

fn shape(program: &Program, axes: &[AxisId], sizes: &[usize]) -> Vec<(String, usize)> {
    axes.iter().map(|axis| (program.axes[axis.index()].name.clone(), sizes[axis.index()])).collect()
}
