//! Examples of each rule, and the laws over generated texts.

use proptest::prelude::*;

use super::*;

fn bytes(max: usize) -> Limit {
    Limit { max, unit: Unit::Bytes }
}

fn texts(text: &str, max: usize) -> Vec<String> {
    split(text, bytes(max)).into_iter().map(|part| part.text).collect()
}

#[test]
fn a_text_within_the_limit_is_one_part_and_an_empty_one_is_none() {
    assert_eq!(texts("", 10), Vec::<String>::new());
    assert_eq!(texts("```\nopen", 8), ["```\nopen"]);
    assert_eq!(texts(" \n ", 3), [" \n "]);
}

#[test]
fn the_last_paragraph_that_fits_ends_a_part() {
    assert_eq!(texts("one\n\ntwo. three\nfour\n\nfive six", 24), ["one\n\ntwo. three\nfour\n\n", "five six"]);
    assert_eq!(texts("one\n\ntwo. three\nfour\n\nfive six", 19), ["one\n\n", "two. three\nfour\n\n", "five six"]);
    assert_eq!(texts("one\n \t\n\n\ntwo", 8), ["one\n \t\n\n", "\ntwo"]);
}

#[test]
fn else_a_line_else_a_sentence_else_a_word_else_a_grapheme() {
    assert_eq!(texts("one two. three\nfour five", 20), ["one two. three\n", "four five"]);
    assert_eq!(texts("One two. Three four", 14), ["One two. ", "Three four"]);
    assert_eq!(texts("One (\"two!\") Three four", 18), ["One (\"two!\") ", "Three four"]);
    assert_eq!(texts("one two three", 9), ["one two ", "three"]);
    assert_eq!(texts("onetwothree", 4), ["onet", "woth", "ree"]);
}

#[test]
fn what_only_looks_like_a_sentence_is_none() {
    assert_eq!(texts("see e.g. this and that", 14), ["see e.g. this ", "and that"]);
    assert_eq!(texts("1. First and second", 11), ["1. First ", "and second"]);
    assert_eq!(texts("version 1.25 is out", 11), ["version ", "1.25 is out"]);
}

#[test]
fn scripts_without_spaces_have_sentences_too() {
    assert_eq!(texts("你好。「再见。」谢谢", 27), ["你好。「再见。」", "谢谢"]);
}

#[test]
fn indentation_stays_with_its_line() {
    assert_eq!(texts("if a:\n    b()\n    c()", 14), ["if a:\n    b()\n", "    c()"]);
    assert_eq!(texts("a\n\n    code", 10), ["a\n\n", "    code"]);
}

#[test]
fn a_line_end_that_does_not_fit_begins_the_next_part() {
    assert_eq!(texts("hello\nworld!", 7), ["hello\n", "world!"]);
    assert_eq!(texts("hello\nworld!", 5), ["hello", "\nworl", "d!"]);
    assert_eq!(texts("hello\r\nbob", 6), ["hello", "\r\nbob"]);
}

#[test]
fn no_part_is_blank_where_there_is_another_way() {
    assert_eq!(texts("one two\n", 7), ["one ", "two\n"]);
    assert_eq!(texts("\n\n\none two", 6), ["\n\n\none", " two"]);
    assert!(split(&" ".repeat(10), bytes(4)).iter().all(Part::is_blank));
}

#[test]
fn a_cut_in_a_code_block_closes_and_opens_the_fence() {
    let parts = split("```rust\nlet a = 1;\nlet b = 2;\nlet c = 3;\n```\nDone.", bytes(40));
    let texts: Vec<_> = parts.iter().map(|part| part.text.as_str()).collect();
    assert_eq!(texts, ["```rust\nlet a = 1;\nlet b = 2;\n```", "```rust\nlet c = 3;\n```\nDone."],);
    assert_eq!((parts[0].added_front, parts[0].added_back), (0, 3));
    assert_eq!((parts[1].added_front, parts[1].added_back), (8, 0));
    assert_eq!(parts[0].original(), "```rust\nlet a = 1;\nlet b = 2;\n");
}

#[test]
fn a_cut_within_a_line_of_code_ends_the_line_before_the_fence() {
    assert_eq!(
        texts("  ~~~ sh\nabcdefghijklmnopqrstuvwxyz\n  ~~~", 32),
        ["  ~~~ sh\nabcdefghijklmnopq\n  ~~~", "  ~~~ sh\nrstuvwxyz\n  ~~~",]
    );
}

#[test]
fn a_code_block_is_a_paragraph_and_gaps_divide_it_only_when_it_must_be_divided() {
    assert_eq!(texts("See:\n```\na\n\nb\n```\nSo.", 15), ["See:\n", "```\na\n\nb\n```\n", "So."]);
    assert_eq!(texts("```\na\n\nb\nc\nd\ne\n```", 16), ["```\na\n\n```", "```\nb\nc\nd\ne\n```"]);
}

#[test]
fn only_what_is_a_fence_is_taken_for_one() {
    // Indented code, inline code, a longer fence around a shorter one, a fence with text behind it.
    assert_eq!(texts("    ```\naaaa bbbb cccc\n", 16), ["    ```\n", "aaaa bbbb cccc\n"]);
    assert_eq!(texts("```a``` b\naaaa bbbb cccc\n", 16), ["```a``` b\n", "aaaa bbbb cccc\n"]);
    assert_eq!(texts("````\n```\naaaa\nbbbb\n```\n````", 22), ["````\n```\naaaa\n````", "````\nbbbb\n```\n````"]);
    assert_eq!(texts("```\n``` x\n~~~\naaaa\nbbbb\n```", 22), ["```\n``` x\n~~~\naaaa\n```", "```\nbbbb\n```"]);
}

#[test]
fn fences_that_would_take_more_than_half_of_the_limit_are_left_out() {
    assert_eq!(texts("```typescript\naaaa\nbbbb\ncccc\n```", 24), ["```typescript\naaaa\nbbbb\n", "cccc\n```"]);
}

#[test]
fn each_unit_counts_what_its_platforms_count() {
    let text = "äö🎉x";
    let first = |max, unit| split(text, Limit { max, unit }).swap_remove(0).text;
    assert_eq!(first(8, Unit::Bytes), "äö🎉");
    assert_eq!(first(3, Unit::Chars), "äö🎉");
    assert_eq!(first(4, Unit::Utf16), "äö🎉");
    assert_eq!(first(3, Unit::Utf16), "äö");
}

#[test]
fn a_grapheme_is_cut_only_when_it_is_larger_than_the_limit() {
    let family = "👨\u{200d}👩\u{200d}👧";
    assert_eq!(texts(&format!("ab{family}cd"), family.len() + 1), ["ab", &format!("{family}c"), "d"]);
    assert_eq!(texts(family, 8), ["👨\u{200d}", "👩\u{200d}", "👧"]);
    // A flag that begins in a cluster that is too large leaves the next flag whole.
    assert_eq!(texts("\u{600}🇦🇧🇨🇩", 8), ["\u{600}🇦", "🇧", "🇨🇩"]);
    // Not even one character fits: it goes alone.
    assert_eq!(texts("ab🎉", 2), ["ab", "🎉"]);
}

/// Were each part to look at all of the text, if only for the next line end, this would take many minutes.
#[test]
fn a_large_text_of_one_line_one_grapheme_or_many_fences_is_split_whole() {
    const LEN: usize = 4 << 20;
    for (shape, max) in [("word", 8), ("\u{301}", 8), ("~~~\nTwo words. \n\n", 32)] {
        let text = shape.repeat(LEN / shape.len());
        let parts = split(&text, Limit { max, unit: Unit::Utf16 });
        assert_eq!(parts.iter().map(|part| part.original().len()).sum::<usize>(), text.len());
    }
}

/// Texts out of what is difficult.
fn difficult() -> impl Strategy<Value = String> {
    let pieces = proptest::sample::select(vec![
        "\n",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        " ",
        "  ",
        "    ",
        "\t",
        "\u{a0}",
        "\u{2028}",
        "word",
        "two words",
        "Sentence. ",
        "e.g. ",
        "。",
        "！",
        "12. ",
        "```",
        "```\n",
        "````\n",
        "```rust\n",
        "~~~\n",
        "~~~~ x `y`\n",
        "   ```\n",
        "    ```\n",
        "`",
        "```a```",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "e\u{301}",
        "\u{301}",
        "\u{200d}",
        "\u{fe0f}",
        "👨\u{200d}👩\u{200d}👧\u{200d}👦",
        "👍🏽",
        "🇩🇪",
        "🇦",
        "\u{600}",
        "क्षि",
        "\u{94d}",
        "각",
        "ᄀ",
        "ᅡ",
        "한",
        "漢字",
        "\0",
        "e\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}\u{307}\u{308}\u{309}\u{30a}\u{30b}\u{30c}",
    ]);
    let vocabulary = proptest::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat());
    prop_oneof![4 => vocabulary, 1 => any::<String>(), 1 => "\\PC{0,200}"]
}

fn limits() -> impl Strategy<Value = Limit> {
    let unit = proptest::sample::select(vec![Unit::Bytes, Unit::Chars, Unit::Utf16]);
    (prop_oneof![4usize..40, 4usize..300], unit).prop_map(|(max, unit)| Limit { max, unit })
}

/// Markdown whose words and lines are short beside the limits it is split with.
fn markdown() -> impl Strategy<Value = String> {
    let prose = proptest::collection::vec("[a-z]{1,9}[.]?", 1..12).prop_map(|words| format!("{}\n", words.join(" ")));
    let code = proptest::collection::vec("( {0,8}[a-z(]{0,12}|    ```|)", 0..12)
        .prop_map(|lines| lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    let fence = proptest::sample::select(vec!["```", "````", "~~~", "   ~~~~"]);
    let block = (fence, "( ?[a-z]{0,8})", code, any::<bool>()).prop_map(|(fence, info, code, closed)| {
        let closing = if closed { format!("{fence}\n") } else { String::new() };
        format!("{fence}{info}\n{code}{closing}")
    });
    let pieces = prop_oneof![prose, Just("\n".to_owned()), block];
    proptest::collection::vec(pieces, 0..20).prop_map(|pieces| pieces.concat())
}

/// Each line with whether it is code, told apart in another way than the module does.
fn code_lines(text: &str) -> Vec<(String, bool)> {
    let mut open: Option<String> = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let inner = line.trim_start_matches(' ');
        let marks: String = match inner.chars().next() {
            Some(mark @ ('`' | '~')) if line.len() - inner.len() < 4 => {
                inner.chars().take_while(|c| *c == mark).collect()
            }
            _ => String::new(),
        };
        let bare = inner.trim_end() == marks;
        match &open {
            Some(fence) if marks.starts_with(fence.as_str()) && bare => open = None,
            Some(_) => lines.push((line.to_owned(), true)),
            None if marks.len() >= 3 => open = Some(marks),
            None => lines.push((line.to_owned(), false)),
        }
    }
    lines
}

proptest! {
    #[test]
    fn nothing_is_lost_or_too_long_or_empty(text in difficult(), limit in limits()) {
        let parts = split(&text, limit);
        prop_assert_eq!(parts.iter().map(Part::original).collect::<String>(), text.clone());
        for part in &parts {
            prop_assert!(limit.measure(&part.text) <= limit.max, "{:?} is longer than {:?}", part, limit);
            prop_assert!(!part.original().is_empty());
        }
        if limit.measure(&text) <= limit.max {
            prop_assert!(parts.len() <= 1 && parts.iter().all(|part| part.text == text));
        }
    }

    #[test]
    fn a_limit_that_nothing_fits_still_loses_nothing(text in difficult(), max in 0usize..4) {
        for unit in [Unit::Bytes, Unit::Chars, Unit::Utf16] {
            let parts = split(&text, Limit { max, unit });
            prop_assert_eq!(parts.iter().map(Part::original).collect::<String>(), text.clone());
            let single = |part: &Part| part.text.chars().count() == 1;
            prop_assert!(parts.iter().all(|part| unit_len(unit, &part.text) <= max || single(part)));
        }
    }

    #[test]
    fn graphemes_stay_whole(text in difficult(), limit in limits()) {
        let mut cuts = Vec::new();
        for part in split(&text, limit) {
            cuts.push(cuts.last().unwrap_or(&0) + part.original().len());
        }
        for (start, cluster) in text.grapheme_indices(true) {
            let inside = |cut: &&usize| (start + 1..start + cluster.len()).contains(*cut);
            let cut = cuts.iter().find(inside);
            prop_assert!(cut.is_none() || limit.measure(cluster) > limit.max, "{:?} was cut at {:?}", cluster, cut);
        }
    }

    #[test]
    fn a_line_is_cut_only_when_it_does_not_fit(text in "([a-z.]{1,6}[ \n]){0,40}x", max in 4usize..40) {
        let parts = split(&text, bytes(max));
        let mut end = 0;
        for part in &parts {
            end += part.text.len();
            let rest = text[end..].split_inclusive('\n').next().unwrap_or_default();
            // Cut within a line: no other line ends in this part, and this one would not have fit.
            if !part.text.ends_with('\n') && !rest.trim().is_empty() {
                prop_assert!(!part.text.trim_start().contains('\n'), "{:?}", parts);
                prop_assert!(part.text.len() + rest.trim_end().len() > max, "{:?}", parts);
            }
        }
    }

    #[test]
    fn each_part_shows_as_code_what_is_code(text in markdown(), max in 80usize..200) {
        let parts = split(&text, bytes(max));
        let mut shown = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            // A line that was cut is two lines now: it is compared in pieces.
            let mut lines = code_lines(&part.text);
            if part.original().starts_with('\n') && at > 0 && !parts[at - 1].original().ends_with('\n') {
                lines.remove(0);
            } else if at > 0 && !parts[at - 1].original().ends_with('\n') {
                let (rest, code) = lines.remove(0);
                let last: &mut (String, bool) = shown.last_mut().expect("not empty");
                prop_assert_eq!(last.1, code, "a line is half code: {:?}", parts);
                last.0.push_str(&rest);
            }
            shown.extend(lines);
        }
        prop_assert_eq!(shown, code_lines(&text), "{:?}", parts);
    }

    #[test]
    fn all_that_is_added_are_fences(text in markdown(), max in 20usize..200) {
        for part in split(&text, bytes(max)) {
            let (front, back) = (&part.text[..part.added_front], &part.text[part.text.len() - part.added_back..]);
            prop_assert!(front.is_empty() || front.ends_with('\n') && text.contains(front), "{:?}", part);
            prop_assert!(back.trim_matches(['`', '~', ' ', '\n']).is_empty(), "{:?}", part);
            prop_assert!(part.added_front.max(part.added_back) <= max / 2, "{:?}", part);
        }
    }
}

fn unit_len(unit: Unit, text: &str) -> usize {
    Limit { max: 0, unit }.measure(text)
}
