//! The cheapest of many yes-or-no choices, where a choice may cost something by itself or beside another's opposite.
//!
//! Comes in: variables and prices. Goes out: a value for each, the sum of prices as small as can be; of several such,
//! the one with the fewest variables true, which is one and the same on every machine. It is a minimum cut: a variable
//! is true on the side of the source.

use std::collections::VecDeque;

/// A price never paid.
pub const NEVER: u64 = u64::MAX / 4;

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(usize);

/// Variables and prices.
pub struct Choices {
    /// By vertex: its edges. Edge `e` and `e ^ 1` are the two ways of one.
    edges: Vec<Vec<usize>>,
    to: Vec<usize>,
    /// What may still flow.
    left: Vec<u64>,
}

const SOURCE: usize = 0;
const SINK: usize = 1;

impl Choices {
    /// No variables yet.
    pub fn new() -> Choices {
        Choices { edges: vec![Vec::new(), Vec::new()], to: Vec::new(), left: Vec::new() }
    }

    /// A new variable.
    pub fn choice(&mut self) -> Choice {
        self.edges.push(Vec::new());
        Choice(self.edges.len() - 1)
    }

    /// What it costs if the variable is true.
    pub fn if_true(&mut self, x: Choice, price: u64) {
        self.edge(x.0, SINK, price);
    }

    /// What it costs if the variable is false.
    pub fn if_false(&mut self, x: Choice, price: u64) {
        self.edge(SOURCE, x.0, price);
    }

    /// What it costs if the one is true and the other false.
    pub fn if_without(&mut self, x: Choice, y: Choice, price: u64) {
        self.edge(x.0, y.0, price);
    }

    fn edge(&mut self, from: usize, to: usize, price: u64) {
        self.edges[from].push(self.to.len());
        self.edges[to].push(self.to.len() + 1);
        self.to.extend([to, from]);
        self.left.extend([price, 0]);
    }

    /// The variables that are true.
    pub fn solve(mut self) -> Solved {
        while let Some(levels) = self.levels() {
            let mut next = vec![0; self.edges.len()];
            while self.augment(&levels, &mut next) {}
        }
        let mut reached = vec![false; self.edges.len()];
        reached[SOURCE] = true;
        let mut queue = VecDeque::from([SOURCE]);
        while let Some(at) = queue.pop_front() {
            for &edge in &self.edges[at] {
                let to = self.to[edge];
                if self.left[edge] > 0 && !std::mem::replace(&mut reached[to], true) {
                    queue.push_back(to);
                }
            }
        }
        Solved(reached)
    }

    /// Distances from the source, if the sink can be reached.
    fn levels(&self) -> Option<Vec<usize>> {
        let mut levels = vec![usize::MAX; self.edges.len()];
        levels[SOURCE] = 0;
        let mut queue = VecDeque::from([SOURCE]);
        while let Some(at) = queue.pop_front() {
            for &edge in &self.edges[at] {
                let to = self.to[edge];
                if self.left[edge] > 0 && levels[to] == usize::MAX {
                    levels[to] = levels[at] + 1;
                    queue.push_back(to);
                }
            }
        }
        (levels[SINK] != usize::MAX).then_some(levels)
    }

    /// Lets as much flow along one shortest way as goes. `next` is how many edges of a vertex are done with.
    fn augment(&mut self, levels: &[usize], next: &mut [usize]) -> bool {
        let mut way: Vec<usize> = Vec::new();
        let mut at = SOURCE;
        while at != SINK {
            let Some(&edge) = self.edges[at].get(next[at]) else {
                // Nothing goes on from here: one step back.
                let Some(edge) = way.pop() else { return false };
                at = self.to[edge ^ 1];
                next[at] += 1;
                continue;
            };
            let to = self.to[edge];
            if self.left[edge] > 0 && levels[to] == levels[at] + 1 {
                way.push(edge);
                at = to;
            } else {
                next[at] += 1;
            }
        }
        let flow = way.iter().map(|&edge| self.left[edge]).min().unwrap_or(0);
        for edge in way {
            self.left[edge] -= flow;
            self.left[edge ^ 1] += flow;
        }
        true
    }
}

/// The values of all variables.
pub struct Solved(Vec<bool>);

impl Solved {
    /// The value of one.
    pub fn is(&self, x: Choice) -> bool {
        self.0[x.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every assignment of few variables, the cheapest of them.
    fn cheapest(n: usize, price: impl Fn(&[bool]) -> u64) -> u64 {
        (0..1usize << n).map(|bits| price(&(0..n).map(|i| bits >> i & 1 == 1).collect::<Vec<_>>())).min().unwrap()
    }

    #[test]
    fn no_assignment_is_cheaper() {
        let mut seed = 7u64;
        let mut draw = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..400 {
            let n = 1 + draw(8) as usize;
            let single: Vec<(u64, u64)> = (0..n).map(|_| (draw(20), draw(20))).collect();
            let pairs: Vec<(usize, usize, u64)> = (0..draw(16))
                .map(|_| (draw(n as u64) as usize, draw(n as u64) as usize, draw(15)))
                .filter(|(a, b, _)| a != b)
                .collect();
            let price = |values: &[bool]| {
                let own = values.iter().zip(&single).map(|(&x, &(yes, no))| if x { yes } else { no });
                let beside = pairs.iter().map(|&(a, b, price)| if values[a] && !values[b] { price } else { 0 });
                own.sum::<u64>() + beside.sum::<u64>()
            };
            let mut choices = Choices::new();
            let x: Vec<Choice> = (0..n).map(|_| choices.choice()).collect();
            for (&x, &(yes, no)) in x.iter().zip(&single) {
                choices.if_true(x, yes);
                choices.if_false(x, no);
            }
            for &(a, b, price) in &pairs {
                choices.if_without(x[a], x[b], price);
            }
            let solved = choices.solve();
            let values: Vec<bool> = x.iter().map(|&x| solved.is(x)).collect();
            assert_eq!(price(&values), cheapest(n, price), "{single:?} {pairs:?}");
        }
    }
}
