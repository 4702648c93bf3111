//! Every message of the language once: its number, its title, and the long explanation behind
//! `chunkwise explain E0204`. Numbers are never given twice; E01 is reading, E02 names, E03 axes and arguments,
//! E04 states and outputs, W05 warnings.

use crate::diagnostic::Severity;

macro_rules! codes {
    ($($variant:ident $number:literal $title:literal $explanation:literal)*) => {
        /// A kind of message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// All of them, by number.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The number: `E0204`.
            pub fn number(self) -> &'static str {
                match self { $(Code::$variant => $number),* }
            }
            /// What it is about, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),* }
            }
            /// The rule behind it, with an example.
            pub fn explanation(self) -> &'static str {
                match self { $(Code::$variant => $explanation),* }
            }
        }
    };
}

impl Code {
    /// The code with this number, in either case.
    pub fn from_number(number: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.number().eq_ignore_ascii_case(number))
    }
    /// Whether it says that something is missing, which an error elsewhere may explain.
    pub fn is_about_absence(self) -> bool {
        matches!(self, Code::UnusedInput | Code::UnusedName | Code::StateNeverUpdated)
    }
    /// Whether it refuses a program.
    pub fn severity(self) -> Severity {
        if self.number().starts_with('W') { Severity::Warning } else { Severity::Error }
    }
}

codes! {
    UnexpectedCharacter "E0101" "a character that means nothing"
"Outside of comments a program is made of names, numbers, brackets and the signs + - * / @ ^ = : , and ->.
There are no strings, no comparisons and no branches: every token does the same."

    Lookalike "E0102" "a character that looks like another"
"Text copied from a paper brings its typography along: a minus that is a dash, a product that is a dot, a Greek
letter. The language is typed in plain ASCII, so that names survive into C and Python:

    S = exp(γ) · S          // refused
    S = exp(gamma) * S      // accepted

A dot in a paper may be an elementwise product (`*`) or a sum over an axis (`@`): choose the one that is meant.
Comments may hold any character."

    ForeignComment "E0103" "a comment of another language"
"A comment begins with `//` and ends with its line. `///` before a recurrence is its documentation."

    Semicolon "E0104" "a semicolon"
"A statement ends where the next one begins, and newlines mean nothing, so there is nothing for `;` to do:

    a = x   b = y           // two statements"

    MalformedNumber "E0105" "a number that cannot be read"
"Numbers are written with digits on both sides of the point, and with an exponent if needed: 2, 0.5, 1e-6.
A product of a number and a value needs its `*`: `2 * x`."

    UnexpectedToken "E0106" "something unexpected"
"The statement could be read up to the place marked. The message says what could stand there."

    UnclosedBracket "E0107" "a bracket that is never closed"
"Every `(`, `[` and `{` needs its partner. A statement's brackets close within the statement; the braces of a
recurrence or a loop close after its last statement."

    UnopenedBracket "E0108" "a closing bracket too many"
"Every `)`, `]` and `}` needs a partner before it."

    TooDeep "E0109" "too deeply nested"
"Expressions may be 200 operations deep and brackets may nest 100 deep. That is far more than a person can read:
name the inner parts with `let`."

    OutsideRecurrence "E0110" "something outside of any recurrence"
"A file holds recurrences and comments:

    recurrence linear_attention {
        axis K, V
        …
    }"

    MalformedRecurrence "E0111" "a recurrence that does not begin as one"
"A recurrence begins with the keyword, one name and a brace: `recurrence gated_delta_rule {`. It takes no
parameters: everything it needs is declared inside."

    CompoundAssignment "E0112" "a compound assignment"
"An update is written out: `S = S + k * v`. The right side then shows the whole of what a token does to the state,
which is how it stands in a paper."

    ForeignPower "E0113" "a power written with two stars"
"A power is `x ^ 2`. It binds tighter than a minus before it, as in mathematics: `-x ^ 2` is -(x²). The exponent may
have a sign: `K ^ -0.5`."

    ForeignPrefix "E0114" "a function behind a point"
"Functions stand alone and before their value: `exp(g)` for `np.exp(g)`, `sum(x, K)` for `x.sum(-1)`."

    Transpose "E0115" "a transpose"
"Axes have names, and operations align them by name. So there is nothing to transpose: `k @ S` with k: [K] and
S: [K, V] sums over K and leaves V; `S @ v` sums over V and leaves K. An outer product is `k * v`."

    ForeignAssignment "E0116" "an assignment written with another sign"
"A value is given with `=`."

    MissingEquals "E0117" "a statement without `=`"
"A statement gives a value to a name: `S = …` updates a state, `let x = …` names a value of the token,
`output o: [V] = …` gives an output."

    MalformedFor "E0118" "a loop that does not begin as one"
"A loop repeats its statements for every position of an axis, from the first to the last:

    for r in R {
        S = S + k[r] * (beta[r] * (v[r] - k[r] @ S))
    }

Inside, `k[r]` is k at that position of the axis R. There are no other loops: time is never written."

    MalformedDeclaration "E0119" "a declaration that lacks a part"
"A tensor is declared with its name, its axes in brackets, and a range if it has one:

    input q: [K], g: [] in (-inf, 0]
    param u: [K]
    state S: [K, V]
    output o: [V] = q @ S

No axes, `[]`, is a single number for every token and head. The order of the axes is the layout in memory."

    MalformedRange "E0120" "a range that cannot be read"
"After `in` stand two bounds in brackets or a norm. `[` and `]` include the bound, `(` and `)` leave it out:

    input g: [] in (-inf, 0]
    input beta: [] in [0, 1]
    input k: [K] in unit(K)      // its norm over K is at most one

Bounds are plain numbers, or inf. A range is a promise: a narrow one of a decay lets products be computed faster, and
data outside of it may then give NaN. It also decides how test data are drawn, and what is checked on request."

    ReservedName "E0121" "a word of the language as a name"
"Keywords and names of functions cannot be names of values, axes or recurrences."

    MissingOperator "E0122" "two values side by side"
"Products are written out. `a * b` multiplies entry by entry and aligns axes by name, so `k * v` with k: [K] and
v: [V] is the outer product; `a @ b` multiplies and sums over every axis both have."

    KeywordArgument "E0123" "an argument with a name"
"Arguments are given by place. A reduction takes the name of its axis second: `sum(x, K)`, `softmax(x, K)`."

    IndexedAssignment "E0124" "an assignment to part of a state"
"A state is updated as a whole: `S = …`. Writing to one row is an outer product with a vector that is zero elsewhere.
Time is never written: on the right side S is the state before the statement, on the left the state after it."

    OutputWithoutValue "E0125" "an output without a value"
"An output is declared and given in one statement, which may stand anywhere among the others. Before an update it
reads the old state, after it the new one:

    output o: [V] = q @ S"

    ForeignStatement "E0126" "a statement of another language"
"There are no branches, functions, imports or returns. A statement declares (axis, input, param, const, state), names
a value (let), updates a state (S = …), gives an output (output o: [V] = …) or repeats (for r in R)."

    UnknownStatement "E0127" "a statement that begins with an unknown word"
"A statement begins with axis, input, param, const, state, output, let or for, or with the name of a state and `=`."

    UndefinedName "E0201" "a name that is not defined"
"Every name is declared: values with input, param, const, state or let, axes with axis, loop variables with for.
Time is never written: S_t and S_{t-1} are both S, after and before the statement."

    Redefinition "E0202" "a name defined twice"
"Axes, values and loop variables share one namespace, and a name means one thing. A value that changes within a token
is either a state or deserves a second name."

    NotAnAxis "E0203" "a name that is no axis"
"Between the brackets of a declaration, after `in` of a loop, in `unit(…)`, and as the second argument of a reduction
stand names of axes, declared with `axis K, V`."

    UnknownFunction "E0204" "a function that does not exist"
"The functions are
    exp exp2 log sqrt abs sign sigmoid logsigmoid softplus silu tanh elu relu gelu sin cos square   of one value
    min(a, b) max(a, b)                                                              of two, entry by entry
    sum(x, K) mean(x, K) max(x, K) softmax(x, K) l2norm(x, K)                        over an axis
    rename(x, K -> L) stop_gradient(x)
Products with a sum are written `a @ b`, powers `x ^ p`."

    BoundLater "E0205" "a name used before its `let`"
"Statements run in order, once for every token, so a `let` can be used only after it. Declarations (axis, input,
param, state) have no order, but a const uses only constants before it."

    OutOfScope "E0206" "a name used outside of its loop"
"What a loop binds, its variable and the `let`s inside, is bound anew for each position and ends with the loop. What is
to remain after it has to be a state."

    OutputAsValue "E0207" "an output used as a value"
"An output only leaves the recurrence. Name the value with `let`, and use it for the output and elsewhere:

    let y = q @ S
    output o: [V] = y"

    FixedValue "E0208" "an assignment to something that does not change"
"Only states are assigned. Inputs vary from token to token by themselves, parameters and constants are given, and a
`let` keeps its value for the token."

    AssignedUndeclared "E0209" "an assignment to an undeclared name"
"`x = …` updates a state, which has to be declared: `state x: [K]`. A value that only lives for one token is named with
`let x = …`."

    OutputAssigned "E0210" "an output assigned again"
"An output is given once, where it is declared: `output o: [V] = …`."

    DuplicateRecurrence "E0211" "two recurrences of one name"
"Recurrences of one file are told apart by their names."

    FunctionAsValue "E0212" "a function used as a value"
"A function is applied: `exp(g)`."

    ValueCalled "E0213" "a value used as a function"
"Only functions take arguments in parentheses. A product is written `*` or `@`, and a position along an axis `k[r]`."

    AxesDoNotFit "E0301" "axes that do not fit"
"A value spreads over axes it lacks, but cannot lose axes it has: a state or an output takes only values whose axes are
among its own. An axis is lost by summing over it: `k @ S`, `sum(x, K)`, `mean(x, K)`."

    NoSharedAxis "E0302" "`@` without a shared axis"
"`a @ b` multiplies and sums over every axis that both have. Without one there is nothing to sum: write `a * b`, which
for k: [K] and v: [V] is the outer product [K, V]."

    ArgumentCount "E0303" "a wrong number of arguments"
"Functions of one value take one, `min` and `max` take two, reductions take a value and the name of an axis."

    ReduceMissingAxis "E0304" "a reduction over an axis the value lacks"
"`sum(x, K)` needs an x that varies along K. A value that does not would be multiplied by the size of K, which is hardly
meant; if it is, write `K * x`."

    ReduceNeedsAxis "E0305" "a reduction without an axis"
"Reductions name their axis as a bare second argument: `sum(x, K)`, `softmax(x, K)`. Places such as -1 are not used."

    BadRename "E0306" "a rename that does not work"
"`rename(x, K -> L)` gives a copy of x whose axis K is called L. x has to have K and must not have L; both are declared
and have the same size."

    IndexMissingAxis "E0307" "an index along an axis the value lacks"
"`k[r]` with `for r in R` is k at position r of the axis R, so k needs that axis. A literal, `k[0]`, is a position along
the first axis k was declared with."

    BadIndex "E0308" "an index that is neither a loop variable nor a literal"
"An index is the variable of a loop or a whole number: `k[r]`, `k[0]`. What it stands for has to be known when the kernel
is compiled."

    RepeatedAxis "E0309" "an axis twice in one tensor"
"Axes are told apart by their names, so a tensor has each once. A square matrix has two axes of the same size:

    axis K, L
    input M: [K, L]
    … rename(M @ x, L -> K)"

    EmptyRange "E0310" "a range without a number in it"
"The lower bound comes first: `(-inf, 0]`."

    UnitMissingAxis "E0311" "unit of an axis the tensor lacks"
"`in unit(K)` promises that the norm over K is at most one, so the tensor needs the axis K."

    NotConstant "E0312" "a constant that is not constant"
"A const is a number that is known before any data is: an expression of literals, sizes of axes and constants before it.
A value that depends on inputs is named with `let`; one that is learned is a `param`."

    MisplacedMapping "E0313" "`->` outside of rename"
"`K -> L` is the second argument of `rename`, and nothing else."

    NotAffine "E0401" "a state that enters its own next value in a curved way"
"The new value of a state has to be an affine function of the old: a factor that does not depend on the state times the
state, plus something that does not. Sums, products with values of the token, `@`, and reads such as k @ S keep it so;
S * S, tanh(S) and 1 / S do not. Only then is the effect of many tokens of the same form as that of one, which is what
lets a chunk be computed at once.

States that depend on each other count as one. A state that others depend on but that does not depend on them may enter
in any way; and an output may be any function of reads."

    NoState "E0402" "a recurrence without a state"
"A recurrence carries something from token to token: `state S: [K, V]`."

    NoOutput "E0403" "a recurrence without an output"
"Something has to come out for every token: `output o: [V] = q @ S`."

    OutputInLoop "E0404" "an output inside a loop"
"An output is given once a token. Give it before or after the loop; what the loop computes reaches it through a state."

    DeclarationInLoop "E0405" "a declaration inside a loop"
"Axes, inputs, parameters, constants and states are declared outside of loops. An input that differs from position to
position has the loop's axis: `input k: [R, K]`, and `k[r]` inside."

    RangeOnState "E0406" "a range on a state"
"What a state holds follows from the recurrence; nothing can be promised about it. Ranges belong to inputs and
parameters."

    UnusedInput "W0501" "an input that is never used"
"An unused input is read from memory for nothing, and its gradient is zero. Often a name was mistaken."

    UnusedName "W0502" "a name that is never used"
"Nothing depends on it. Often a name was mistaken."

    StateNeverUpdated "W0503" "a state that is never updated"
"It keeps its initial value for the whole sequence. Often the update is missing, or was written as `let`."

    UnboundedGrowth "W0504" "a decay that may grow"
"exp(g) multiplies the state, and nothing says that g is at most 0. Above 0 the state grows from token to token, without
bound, and overflows in float32 once the sum of g over the sequence passes 88; a lowering whose exponents stay in range
cannot be chosen. Say what g is, `input g: [] in (-inf, 0]`, or build it so: `-exp(A) * softplus(dt)`, `logsigmoid(f)`."

    Grouping "W0505" "a product whose grouping matters"
"`*` and `@` bind alike and group from the left, so `a * b @ c` is `(a * b) @ c`. When a shares an axis with c, that
axis is summed over; in `a * (b @ c)` it is not. Parentheses say which is meant. `scale * q @ S` needs none: a scale
shares no axis, and both groupings are the same. Likewise `k @ S * k` is `(k @ S) * k`, an outer product, and not
`k @ (S * k)`."

    UnboundedWrite "W0506" "a write that may overflow"
"exp(i) multiplies what is written into a state, and nothing says that i stays below 88, where exp leaves float32. One
such token makes the state infinite, and what is read from then on infinite or not a number. No running maximum is kept
that would prevent it. Say what i is, `input i: [] in [-20, 20]`, and have it checked with --check-ranges, or use a
gate that ends at 1, `sigmoid(i)`. In float64 (--form naive, --dtype f64) the limit is 709."
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn every_number_is_given_once_and_found_again() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            assert_eq!(Code::from_number(&code.number().to_lowercase()), Some(*code));
            assert!(Code::ALL[..index].iter().all(|earlier| earlier.number() < code.number()), "{}", code.number());
        }
        assert_eq!(Code::from_number("E9999"), None);
    }
}
