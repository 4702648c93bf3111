//! The verifier's proofs, tried out: what it accepts never leaves its bounds when it is run.

use chunkwise_compiler::tile::interp::{HostCall, run};
use chunkwise_compiler::tile::text::parse;
use chunkwise_compiler::tile::verify::verify;

/// Choices without a pattern, the same in every run.
struct Choices(u64);
impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
    fn of(&mut self, options: &[&str]) -> String {
        options[self.below(options.len())].to_string()
    }
    /// A small affine form in the variables in scope.
    fn affine(&mut self, vars: &[&str]) -> String {
        let mut text = self.of(&["0", "0", "1", "-1", "3", "-4", "T", "T - 1", "T - 4*c", "4*c"]);
        if !vars.contains(&"c") {
            text = text.replace("T - 4*c", "T").replace("4*c", "2");
        }
        for var in vars {
            if self.below(2) == 0 {
                text.push_str(&format!(" {} {}*{var}", self.of(&["+", "+", "-"]), self.of(&["1", "1", "2", "3", "4"])));
            }
        }
        text
    }
    fn index(&mut self, vars: &[&str]) -> String {
        let value = self.affine(vars);
        if self.below(3) > 0 {
            return value;
        }
        let limit = if self.below(2) == 0 { "T - 1".to_string() } else { self.affine(vars) };
        format!("min({value}, {limit})")
    }
    fn program(&mut self) -> String {
        let chunks = self.of(&["0 .. chunks(4)", "0 .. chunks(4)", "1 .. chunks(4)", "reverse 0 .. chunks(3)"]);
        let (lo, hi) = (self.of(&["0", "0", "1", "min(2, T)"]), self.index(&["c"]));
        let hi = if self.below(2) == 0 { self.of(&["4", "min(4, T - 4*c)", "c", "T"]) } else { hi };
        let compare = self.of(&["<", "<=", "=="]);
        let cond = if self.below(2) == 0 {
            "0 < 1".to_string()
        } else {
            format!("{} {compare} {}", self.affine(&["c", "i"]), self.affine(&["c", "i"]))
        };
        let token = self.index(&["c", "i"]);
        let element = self.index(&["i"]);
        let (rows, length) = (self.of(&["1", "2", "4"]), self.of(&["1", "i", "4 - i", "c + 1"]));
        let offset = self.of(&["0", "16*i", "4*i", "64*c", "16*c + 4*i", "16*i - 16", "8"]);
        format!(
            "kernel k {{ arg q : f32 token[] read arg s : f32 chunk(4)[] read buf %a : [6] buf %b : [8, 16] buf %d : [4, 4]
            for i in 0 .. 6 {{ %a[i] = 0 }}
            for i in 0 .. 8 {{ for j in 0 .. 16 {{ %b[i, j] = 0 }} }}
            for c in {chunks} {{ for i in {lo} .. {hi} {{ if {cond} {{
                {}
            }} }} }} }}",
            match self.below(4) {
                0 => format!("%a[0] = q[{token}]"),
                1 => format!("%a[{element}] = 1"),
                2 => format!("%a[0] = s[{token}]"),
                _ => format!("matmul %d[{rows}, 4] = %b[{rows}, {length} at {offset}] * %b[{length}, 4]"),
            }
        )
    }
}

#[test]
fn what_is_accepted_stays_inside() {
    let mut choices = Choices(11);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..6000 {
        let text = choices.program();
        let kernel = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        if verify(&kernel).is_err() {
            refused += 1;
            continue;
        }
        accepted += 1;
        for length in 0..14 {
            let mut call = HostCall::new(1, length, 1);
            for arg in &kernel.args {
                let data = vec![0.0; call.dense_elements(arg, 1)];
                let tensor = call.dense(arg, 1, data);
                call.tensors.push(tensor);
            }
            run(&kernel, &mut call).unwrap_or_else(|error| panic!("T = {length}: {error}\n{text}"));
        }
    }
    assert!(accepted > 300 && refused > 300, "{accepted} accepted, {refused} refused: the choices test nothing");
}

#[test]
fn what_lies_apart_is_really_apart() {
    // Two views of one buffer, against the sets of their elements.
    let mut choices = Choices(12);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..6000 {
        let [m, n, k] = [(); 3].map(|()| choices.below(4) + 1);
        let offset =
            |choices: &mut Choices| (choices.below(4) * 16, choices.below(14), choices.below(3), choices.below(20));
        let ((dst_row, dst_col, dst_down, dst_right), (a_row, a_col, a_down, a_right)) =
            (offset(&mut choices), offset(&mut choices));
        let (dst_at, a_at) = (dst_row + dst_col, a_row + a_col);
        let transposed = choices.below(2) == 0;
        let step = if transposed { (1, 16) } else { (16, 1) };
        let text = format!(
            "kernel k {{ buf %b : [12, 16] buf %o : [8, 16] for i in 0 .. 12 {{ for j in 0 .. 16 {{ %b[i, j] = 0 }} }}
            for i in 0 .. 8 {{ for j in 0 .. 16 {{ %o[i, j] = 0 }} }}
            for r in 0 .. 3 {{
                matmul %b[{m}, {n} at {dst_at} + {}*r] = %b[{m}, {k} at {a_at} + {}*r step {}, {}] * %o[{k}, {n}]
            }} }}",
            dst_down * 16 + dst_right,
            a_down * 16 + a_right,
            step.0,
            step.1,
        );
        let kernel = parse(&text).unwrap();
        let overlap = (0..3).any(|r| {
            let dst = dst_at + r * (dst_down * 16 + dst_right);
            let a = a_at + r * (a_down * 16 + a_right);
            let stored: Vec<_> = (0..m).flat_map(|i| (0..n).map(move |j| dst + 16 * i + j)).collect();
            (0..m).any(|i| (0..k).any(|j| stored.contains(&(a + step.0 * i + step.1 * j))))
        });
        match verify(&kernel) {
            Ok(()) => {
                accepted += 1;
                assert!(!overlap, "{text}");
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 300 && refused > 300, "{accepted} accepted, {refused} refused: the choices test nothing");
}
