//! The rules, one file each. `ALL` is what `chunkwise explain` and the book list.

pub mod anchor_decay;
pub mod anchor_inside;
pub mod carry_in;
pub mod carry_out;
pub mod close_intra;
pub mod gate_inside;
pub mod normal_form;
pub mod scan_tokens;
pub mod split_time;
pub mod summarise_span;
pub mod transpose;
pub mod ut_transform;

use super::rule::Rule;

/// Every rule.
pub const ALL: &[&Rule] = &[
    &normal_form::RULE,
    &split_time::RULE,
    &carry_in::RULE,
    &close_intra::RULE,
    &gate_inside::RULE,
    &anchor_decay::RULE,
    &anchor_inside::RULE,
    &ut_transform::RULE,
    &carry_out::RULE,
    &scan_tokens::RULE,
    &summarise_span::RULE,
    &transpose::RULE,
];
