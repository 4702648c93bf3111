//! The inverse of a triangular system, and solutions as products with it.

use super::{Draw, assert_close, graph};
use chunkwise_compiler::graph::interp::{Extent, run_over};
use chunkwise_compiler::graph::ir::{Graph, Op};
use chunkwise_compiler::pass::{self, Options};
use chunkwise_compiler::pipeline::FOR_TENSOR_CORES;
use chunkwise_compiler::tensor::Bundle;

const ROWS: usize = 5;
const ONE: Extent = Extent { batch: 1, length: 1, heads: 1, offsets: None };

/// A system of some slots: its dimensions and blocks as text, the blocks' names, and numbers for them.
struct System {
    n: usize,
    text: String,
    lower: String,
    given: Bundle,
}

impl System {
    /// With every block that `has` lets in.
    fn draw(draw: &mut Draw, n: usize, has: impl Fn(usize) -> bool) -> System {
        let mut text = format!(
            "dim j : slot {n} dim i : slot {n} dim t : row {ROWS} dim s : col {ROWS} dim V : axis 0 2 step tokens=1\n"
        );
        let (mut lower, mut given) = (Vec::new(), Vec::new());
        for at in 0..n * n {
            text += &format!("%{at} = token l{at} : [t, s]\n");
            lower.push(if has(at) { format!("%{at}") } else { "_".to_owned() });
            given.push((format!("l{at}"), draw.tensor(&[1, 1, 1, ROWS, ROWS], -1.0, 1.0)));
        }
        System { n, text, lower: lower.join(", "), given: given.into_iter().collect() }
    }
}

/// How many slots, and which blocks are there.
type Pattern = (usize, fn(usize) -> bool);

/// Which blocks are there: all, none, none of a slot's own, none from the second to the first, a chain.
fn patterns() -> [Pattern; 6] {
    let all = |_: usize| true;
    [
        (1, all),
        (1, |_| false),
        (2, all),
        (2, |at| at == 1 || at == 2),
        (2, |at| at >= 2),
        (3, |at| [0, 3, 7].contains(&at)),
    ]
}

#[test]
fn the_inverse_times_the_system_is_the_identity() {
    let mut draw = Draw(3);
    for (n, has) in patterns() {
        let System { text, lower, given, .. } = System::draw(&mut draw, n, has);
        let at = n * n;
        let text =
            format!("graph g {{ {text} %{at} = inverse j i t s lower ({lower}) : [j, i, t, s] save y = %{at} }}");
        let inverse = &run_over(&graph(&text), &given, &ONE).unwrap()["y"].data;
        // Unknown (slot, row) stands at slot · ROWS + row.
        let size = n * ROWS;
        let entry = |row: usize, col: usize| {
            let (j, t, i, s) = (row / ROWS, row % ROWS, col / ROWS, col % ROWS);
            let earlier = s < t || (s == t && i < j);
            let block = &given[&format!("l{}", j * n + i)].data;
            let one = if row == col { 1.0 } else { 0.0 };
            one - if has(j * n + i) && earlier { block[t * ROWS + s] } else { 0.0 }
        };
        let of_inverse =
            |row: usize, col: usize| inverse[((row / ROWS * n + col / ROWS) * ROWS + row % ROWS) * ROWS + col % ROWS];
        for row in 0..size {
            let found: Vec<f64> =
                (0..size).map(|col| (0..size).map(|by| of_inverse(row, by) * entry(by, col)).sum()).collect();
            let expected: Vec<f64> = (0..size).map(|col| if row == col { 1.0 } else { 0.0 }).collect();
            assert_close(&found, &expected, 1e-12);
        }
    }
}

fn prepared(before: &Graph) -> Graph {
    let mut after = before.clone();
    pass::run(&mut after, FOR_TENSOR_CORES, &mut Options { verify: true, dump: None }).unwrap();
    after
}

fn count(graph: &Graph, wanted: impl Fn(&Op) -> bool) -> usize {
    graph.nodes.iter().filter(|node| wanted(&node.op)).count()
}

#[test]
fn solutions_share_one_inverse() {
    let mut draw = Draw(8);
    for (n, has) in patterns() {
        let System { n, text, lower, mut given } = System::draw(&mut draw, n, has);
        let at = n * n;
        let (mut rhs, mut text) = (Vec::new(), format!("graph g {{ {text}"));
        for slot in 0..n {
            // The last has no axis, if there are several.
            let (dims, shape) = match slot {
                1 => ("t", vec![1, 1, 1, ROWS]),
                _ => ("t, V", vec![1, 1, 1, ROWS, 2]),
            };
            text += &format!("%{} = token r{slot} : [{dims}]\n", at + slot);
            rhs.push(format!("%{}", at + slot));
            given.insert(format!("r{slot}"), draw.tensor(&shape, -1.0, 1.0));
        }
        let (rhs, none, zeros) = (rhs.join(", "), vec!["_"; n].join(", "), vec!["0"; n].join(", "));
        for (number, word) in ["", "transposed "].iter().enumerate() {
            text += &format!(
                "%{} = solve {word}j t s lower ({lower}) rhs ({rhs}) scale ({none}) reads ({zeros}) writes ({zeros}) \
                 gates () from 0 to 0 : [j, t, V]\n",
                at + n + number
            );
        }
        let before = graph(&format!("{text} save x = %{} save y = %{} }}", at + n, at + n + 1));
        let after = prepared(&before);
        assert_eq!(count(&after, |op| matches!(op, Op::Solve(_))), 0);
        let reads = (0..n * n).any(has);
        assert_eq!(count(&after, |op| matches!(op, Op::Inverse(_))), usize::from(reads));
        let [expected, found] = [&before, &after].map(|graph| run_over(graph, &given, &ONE).unwrap());
        for name in ["x", "y"] {
            assert_eq!(found[name].shape, expected[name].shape);
            assert_close(&found[name].data, &expected[name].data, 1e-12);
        }
    }
    // Slot 0 does not know of slot 1: of four blocks of the inverse three are read, and one of those is the identity.
    let System { text, lower, .. } = System::draw(&mut draw, 2, |at| at == 0 || at == 2);
    let before = graph(&format!(
        "graph g {{ {text} %4 = token r : [t, V] %5 = token p : [t, V] %6 = solve j t s lower ({lower}) rhs (%4, %5) \
         scale (_, _) reads (0, 0) writes (0, 0) gates () from 0 to 0 : [j, t, V] save x = %6 }}"
    ));
    assert_eq!(count(&prepared(&before), |op| matches!(op, Op::Contract(..))), 2);
}

#[test]
fn what_is_no_plain_system_stays() {
    let mut draw = Draw(8);
    let System { text, lower, .. } = System::draw(&mut draw, 1, |_| true);
    let solves = |rhs: &str, scale: &str, gates: &str, dims: &str| {
        let before = graph(&format!(
            "graph g {{ {text} %1 = token r : [t, V] %2 = token p : [t] %3 = solve j t s lower ({lower}) rhs ({rhs}) \
             scale ({scale}) reads (0) writes (0) gates ({gates}) from 0 to 0 : [{dims}] save x = %3 }}"
        ));
        count(&prepared(&before), |op| matches!(op, Op::Solve(_)))
    };
    assert_eq!(solves("%1", "_", "", "j, t, V"), 0);
    assert_eq!(solves("%2", "_", "", "j, t"), 1);
    assert_eq!(solves("%1", "%2", "", "j, t, V"), 1);
    assert_eq!(solves("%1", "_", "log %2", "j, t, V"), 1);
}
