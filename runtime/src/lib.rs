//! Load, launch, measure.
