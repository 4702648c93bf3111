//! Text on standard output and standard error: lines, tables, JSON. In: what to say; out: nothing. It never fails a
//! command because whoever reads has heard enough.

use std::io::Write;

use comfy_table::Table;
use comfy_table::{LineStyle, TableStyle};
use serde_json::Value;

/// Prints a line, or a text of several. If nobody listens any more, the process ends quietly, as `head` expects.
pub fn say(text: impl std::fmt::Display) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints a line on standard error. That nobody reads it changes nothing about what is done.
pub fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a value as JSON, indented.
pub fn say_json(value: &Value) {
    say(format_args!("{value:#}"));
}

/// A table with a line under its head.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    let style = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(style).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A small number as a person reads it: `0`, `3.1e-7`, `inf`.
pub fn error(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value.is_finite() {
        format!("{value:.1e}")
    } else {
        "inf".to_owned()
    }
}

/// Seconds as a person reads them.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Bytes as a person reads them.
pub fn bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
