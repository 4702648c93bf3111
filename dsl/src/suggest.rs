//! Which known name a misspelt one was probably meant to be. In: a word and candidates; out: the nearest, if near.
//! It never guesses beyond a third of the word's length.

/// The candidate nearest to `word`, if it is near enough to be a slip of the hand.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    // A word of one or two letters is near everything; accept only a different case.
    let allowed = if length <= 2 { 0 } else { length.div_ceil(3) };
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if candidate == word {
            continue;
        }
        let distance = if candidate.to_lowercase() == word.to_lowercase() { 0 } else { distance(word, candidate) };
        if distance <= allowed && best.is_none_or(|(found, _)| distance < found) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) that turn `from` into `to`.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let width = to.len() + 1;
    let mut table = vec![0usize; (from.len() + 1) * width];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            table[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[(i - 1) * width + j - 1] + usize::from(from[i - 1] != to[j - 1]);
                let mut least = replaced.min(table[(i - 1) * width + j] + 1).min(table[i * width + j - 1] + 1);
                if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                    least = least.min(table[(i - 2) * width + j - 2] + 1);
                }
                least
            };
        }
    }
    table[from.len() * width + to.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_leaves_strangers_alone() {
        assert_eq!(nearest("sigmod", ["sigmoid", "sign", "silu"]), Some("sigmoid"));
        assert_eq!(nearest("beat", ["beta", "g"]), Some("beta"));
        assert_eq!(nearest("s", ["S", "K"]), Some("S"));
        assert_eq!(nearest("x", ["y", "z"]), None);
        assert_eq!(nearest("momentum", ["beta", "scale"]), None);
    }
}
