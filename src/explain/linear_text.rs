//! Mathematics written on one line, as rules have it (`exp(γ_r − γ_e)`, `S₀`, `M_{t−1}`), as MathML. In: a line; out:
//! markup. It knows letters, indices, exponents and words, and never fails: what it does not know it shows as it is.

/// A line of mathematics as MathML.
pub fn typeset(line: &str) -> String {
    let mut letters: Vec<char> = line.chars().collect();
    letters.retain(|letter| *letter != '\u{200b}');
    let mut at = 0;
    let mut row = String::new();
    while at < letters.len() {
        if letters[at] == ' ' {
            // Two spaces separate, one is only for the eye of who typed it.
            if letters.get(at + 1) == Some(&' ') {
                row.push_str("<mspace width=\"1.2em\"/>");
            }
            while letters.get(at) == Some(&' ') {
                at += 1;
            }
            continue;
        }
        let base = atom(&letters, &mut at);
        row.push_str(&with_scripts(base, &letters, &mut at));
    }
    format!("<math><mrow>{row}</mrow></math>")
}

/// A name, a number, a word or a sign.
fn atom(letters: &[char], at: &mut usize) -> String {
    let first = letters[*at];
    let begin = *at;
    if first.is_ascii_digit() {
        while letters.get(*at).is_some_and(|letter| letter.is_ascii_digit() || *letter == '.') {
            *at += 1;
        }
        return format!("<mn>{}</mn>", text(&letters[begin..*at]));
    }
    if first.is_alphabetic() && script(first).is_none() {
        while letters.get(*at).is_some_and(|letter| letter.is_alphabetic() && script(*letter).is_none()) {
            *at += 1;
        }
        let word = &letters[begin..*at];
        return match word.iter().collect::<String>().as_str() {
            name @ ("exp" | "log" | "max" | "min" | "diag") => format!("<mi mathvariant=\"normal\">{name}</mi>"),
            name if word.len() == 1 => format!("<mi>{name}</mi>"),
            name => format!("<mtext>&#160;{}&#160;</mtext>", escape(name)),
        };
    }
    *at += 1;
    format!("<mo>{}</mo>", escape(&first.to_string()))
}

/// What follows a base below and above it.
fn with_scripts(base: String, letters: &[char], at: &mut usize) -> String {
    let (mut below, mut above) = (String::new(), String::new());
    while let Some(&letter) = letters.get(*at) {
        match (letter, script(letter)) {
            ('_', _) if *at + 1 < letters.len() => below.push_str(&group(letters, at)),
            ('^', _) if *at + 1 < letters.len() => above.push_str(&group(letters, at)),
            (_, Some((plain, lowered))) => {
                *at += 1;
                let markup =
                    if plain.is_ascii_digit() { format!("<mn>{plain}</mn>") } else { format!("<mi>{plain}</mi>") };
                if lowered { below.push_str(&markup) } else { above.push_str(&markup) }
            }
            (_, None) => break,
        }
    }
    match (below.is_empty(), above.is_empty()) {
        (true, true) => base,
        (false, true) => format!("<msub>{base}<mrow>{below}</mrow></msub>"),
        (true, false) => format!("<msup>{base}<mrow>{above}</mrow></msup>"),
        (false, false) => format!("<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"),
    }
}

/// `_x`, `^{x y}`: what is lowered or raised.
fn group(letters: &[char], at: &mut usize) -> String {
    *at += 1;
    if letters[*at] != '{' {
        return atom(letters, at);
    }
    *at += 1;
    let mut inner = String::new();
    while *at < letters.len() && letters[*at] != '}' {
        if letters[*at] == ' ' {
            *at += 1;
        } else {
            let base = atom(letters, at);
            inner.push_str(&with_scripts(base, letters, at));
        }
    }
    *at = (*at + 1).min(letters.len());
    inner
}

/// A letter that is an index or an exponent by itself: the plain letter, and whether it stands low.
fn script(letter: char) -> Option<(char, bool)> {
    const LOW: &str = "₀₁₂₃₄₅₆₇₈₉";
    const HIGH: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹";
    let digit = |among: &str| {
        among.chars().position(|known| known == letter).and_then(|digit| char::from_digit(digit as u32, 10))
    };
    match letter {
        'ᵀ' => Some(('⊤', false)),
        'ᵛ' => Some(('v', false)),
        'ᵢ' => Some(('i', true)),
        'ⱼ' => Some(('j', true)),
        'ₜ' => Some(('t', true)),
        _ => digit(LOW).map(|plain| (plain, true)).or_else(|| digit(HIGH).map(|plain| (plain, false))),
    }
}

fn text(letters: &[char]) -> String {
    escape(&letters.iter().collect::<String>())
}

/// Text as it may stand in markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::typeset;

    #[test]
    fn indices_and_exponents_find_their_base() {
        assert_eq!(typeset("S₀"), "<math><mrow><msub><mi>S</mi><mrow><mn>0</mn></mrow></msub></mrow></math>");
        assert!(
            typeset("γᵛ_{C}").contains("<msubsup><mi>γ</mi><mrow><mi>C</mi></mrow><mrow><mi>v</mi></mrow></msubsup>")
        );
        assert!(typeset("exp(a_t)").contains("<mi mathvariant=\"normal\">exp</mi><mo>(</mo><msub><mi>a</mi>"));
        assert!(typeset("f where e < r").contains("<mtext>&#160;where&#160;</mtext>"));
        assert!(typeset("f where e < r").contains("<mo>&lt;</mo>"));
    }

    #[test]
    fn nothing_makes_it_stumble() {
        for line in ["", "_", "^", "a_", "a_{", "{}", "^^^", "a_{b_{c", "₀₀ᵀ", "x^ y"] {
            assert!(typeset(line).starts_with("<math>"));
        }
    }
}
