//! From one recurrence to its forms.

pub mod affine;
pub mod chunk;
pub mod form;
pub mod forms;
pub mod interval;
pub mod normalised;
pub mod recognise;
pub mod recurrence;
pub mod rule;
pub mod rules;
