use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Arguments, String> {
    Arguments::try_parse_from(std::iter::once("alba").chain(line.split_whitespace()))
        .map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_says_what_it_does_and_gives_an_example() {
    for command in Arguments::command().get_subcommands() {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} says nothing");
        if !["asd-server", "metadata", "proxy", "maintenance", "rebalancer"].contains(&name) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("alba {name}")), "{name} has no example");
        }
    }
}

#[test]
fn common_options_stand_before_or_after_the_command() {
    for line in ["--to-json --timeout 3 list-objects demo", "list-objects demo --to-json --timeout 3"] {
        let common = parse(line).unwrap().common;
        assert!(common.to_json, "{line}");
        assert_eq!(common.timeout, Some(Duration::from_secs(3)), "{line}");
    }
    for wrong in ["0", "-1", "x", "inf", "NaN"] {
        assert!(parse(&format!("--timeout={wrong} version")).is_err(), "{wrong}");
    }
}

#[test]
fn names_are_checked_before_anything_is_asked() {
    let long = "x".repeat(5000);
    assert!(parse(&format!("create-namespace {long}")).unwrap_err().contains("1024"));
    assert!(parse(&format!("show-object demo {long}")).unwrap_err().contains("4096"));
}

#[test]
fn wrong_arguments_exit_with_2() {
    let code = |line: &str| {
        let args = std::iter::once("alba").chain(line.split_whitespace()).map(OsString::from).collect();
        format!("{:?}", run(args))
    };
    let is = |code: u8| format!("{:?}", ExitCode::from(code));
    assert_eq!(code("no-such-command"), is(2));
    assert_eq!(code("up --nodes 0 --to-json"), is(2));
    assert_eq!(code("list-objects demo --config /nonexistent/client.toml"), is(2));
    assert_eq!(code("version"), is(0));
    assert_eq!(code("--help"), is(0));
}
