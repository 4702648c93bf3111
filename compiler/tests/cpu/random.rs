//! Random kernels: loops, lanes, locals, choices, reductions and products over the same buffers, at random extents.

use super::native::{Numbers, agree, fill};
use chunkwise_compiler::tile::interp::HostCall;
use chunkwise_compiler::tile::text::parse;
use chunkwise_compiler::tile::verify::verify;

struct Program {
    numbers: Numbers,
    /// Rows and columns of the buffers `%b0`, `%b1`, …
    shapes: Vec<(usize, usize)>,
    next: usize,
}

impl Program {
    fn pick(&mut self, options: &[&str]) -> String {
        options[self.numbers.below(options.len())].to_owned()
    }

    fn name(&mut self, stem: &str) -> String {
        self.next += 1;
        format!("{stem}{}", self.next)
    }

    /// An expression of bounded size; `row` and `lane` are indices in scope, of buffers with `rows` and `columns`.
    fn value(&mut self, depth: usize, leaves: &[String], row: &str, lane: &str) -> String {
        if depth == 0 || self.numbers.below(4) == 0 {
            return leaves[self.numbers.below(leaves.len())].clone();
        }
        let sub = |this: &mut Self| this.value(depth - 1, leaves, row, lane);
        let (a, b) = (sub(self), sub(self));
        match self.numbers.below(9) {
            0 => format!("({a} + {b})"),
            1 => format!("({a} - {b})"),
            2 => format!("({a} * {b})"),
            3 => format!("({a} + {b} * 0.5)"),
            4 => format!("tanh({a})"),
            5 => format!("exp(neg(square({a})))"),
            6 => format!("select({lane} <= {row}, {a}, {b})"),
            7 => format!("select_value({a} < {b}, sigmoid({a}), 0.25)"),
            _ => format!("max({a}, min({b}, 1.5))"),
        }
    }

    fn statement(&mut self) -> String {
        let (d, s) = (self.numbers.below(3), self.numbers.below(3));
        let (rows, columns) = self.shapes[d];
        // What is read lies inside both.
        let (row, lane) = (self.name("r"), self.name("l"));
        let (s_rows, s_columns) = self.shapes[s];
        let (m, n) = (rows.min(s_rows), columns.min(s_columns));
        let lo = self.numbers.below(m);
        let direction = self.pick(&["", "reverse "]);
        match self.numbers.below(5) {
            0 | 1 => {
                let leaves = [
                    format!("%b{s}[{row}, {lane}]"),
                    format!("%b{d}[{row}, {lane}]"),
                    "0.75".to_owned(),
                    if s == d { "-0.5".to_owned() } else { format!("%b{s}[{row}, 0]") },
                ];
                let value = self.value(3, &leaves, &row, &lane);
                format!(
                    "for {row} in {direction}{lo} .. {m} {{ lanes {lane} in 0 .. {n} {{ %b{d}[{row}, {lane}] = tanh({value}) }} }}"
                )
            }
            2 => {
                let (x, j) = (self.name("x"), self.name("j"));
                let leaves = [format!("%b{s}[{j}, {lane}]"), x.clone(), "0.5".to_owned()];
                let value = self.value(2, &leaves, &j, &lane);
                format!(
                    "lanes {lane} in 0 .. {n} {{ local {x} = %b{s}[0, {lane}]
                       for {j} in {direction}0 .. {m} {{ {x} = tanh({value}) if {j} < {lo} {{ {x} = {x} * 0.5 }} %b{d}[{j}, {lane}] = {x} }} }}"
                )
            }
            3 => {
                let leaves = [format!("%b{s}[{row}, {lane}]"), "0.25".to_owned()];
                let value = self.value(2, &leaves, &row, &lane);
                let kind = self.pick(&["= sum", "+= sum", "= max", "+= max"]);
                let scale = 1.0 / (n as f64);
                let column = self.numbers.below(columns);
                format!(
                    "for {row} in {direction}{lo} .. {m} {{ %b{d}[{row}, {column}] {kind} {lane} in 0 .. {n} of {scale:?} * {value} }}"
                )
            }
            _ => {
                let sources = [(d + 1) % 3, (d + 2) % 3];
                let [a, b] = sources;
                let (b_rows, b_columns) = self.shapes[b];
                let across = self.numbers.below(2) == 0;
                let (a_rows, a_columns) = self.shapes[a];
                let (a_rows, a_columns) = if across { (a_columns, a_rows) } else { (a_rows, a_columns) };
                let (m, n, k) = (rows.min(a_rows), columns.min(b_columns), a_columns.min(b_rows));
                let (m, n, k) = (1 + self.numbers.below(m), 1 + self.numbers.below(n), self.numbers.below(k + 1));
                let update = self.pick(&["=", "+=", "-="]);
                let step =
                    if across { format!(" step 1, {}", self.shapes[a].1.div_ceil(16) * 16) } else { String::new() };
                format!("matmul %b{d}[{m}, {n}] {update} %b{a}[{m}, {k}{step}] * %b{b}[{k}, {n}]
                         for {row} in 0 .. {m} {{ lanes {lane} in 0 .. {n} {{ %b{d}[{row}, {lane}] = tanh(%b{d}[{row}, {lane}]) }} }}")
            }
        }
    }
}

#[test]
fn random_kernels_agree() {
    let mut compiled = 0;
    for seed in 0..40 {
        let mut program = Program { numbers: Numbers(seed), shapes: Vec::new(), next: 0 };
        for _ in 0..3 {
            let shape = (1 + program.numbers.below(30), 1 + program.numbers.below(45));
            program.shapes.push(shape);
        }
        let mut text = String::from("kernel random {\n");
        for (n, (r, c)) in program.shapes.iter().enumerate() {
            text.push_str(&format!("arg x{n} : f32 head[{r}, {c}] read arg y{n} : f32 head[{r}, {c}] write\n"));
        }
        for (n, (r, c)) in program.shapes.iter().enumerate() {
            text.push_str(&format!("buf %b{n} : [{r}, {c}]\n"));
        }
        for (n, (r, c)) in program.shapes.iter().enumerate() {
            text.push_str(&format!("for i in 0 .. {r} {{ lanes j in 0 .. {c} {{ %b{n}[i, j] = x{n}[i, j] }} }}\n"));
        }
        for _ in 0..6 {
            let statement = program.statement();
            text.push_str(&statement);
            text.push('\n');
        }
        for (n, (r, c)) in program.shapes.iter().enumerate() {
            text.push_str(&format!("for i in 0 .. {r} {{ lanes j in 0 .. {c} {{ y{n}[i, j] = %b{n}[i, j] }} }}\n"));
        }
        text.push('}');
        let kernel = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        // Some read what a lane may have stored.
        if verify(&kernel).is_err() {
            continue;
        }
        compiled += 1;
        let call = fill(&kernel, HostCall::new(1, 1, 1), &[], &mut Numbers(seed + 100));
        agree(&kernel, &call, 2e-4);
    }
    assert!(compiled >= 25, "only {compiled} of 40 kernels were sound");
}
