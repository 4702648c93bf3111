//! From one recurrence to its forms.

pub mod form;
