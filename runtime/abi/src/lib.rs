//! What a kernel looks like from outside.
