//! Judges a kernel's configuration after Kconfig has had its say: it drops silently what it cannot have, and
//! turns on what nobody asked for.

use std::collections::BTreeMap;

use super::{KernelError, ingredients::RecipeFile};

/// What no kernel has, whatever a fragment says: ways into the kernel's memory, out of the measured kernel, to
/// a network, past what the patches hold of the host's ACPI tables, and interfaces that nothing in the guest
/// uses and that are known for their holes.
const FORBIDDEN: [&str; 15] = [
    "ACPI_APEI",
    "ACPI_CONFIGFS",
    "ACPI_DEBUG",
    "ACPI_EC",
    "ACPI_PRMT",
    "BPF_SYSCALL",
    "DEBUG_FS",
    "DEVMEM",
    "HIBERNATION",
    "INET",
    "IO_URING",
    "KEXEC",
    "KEXEC_FILE",
    "PCI_MMCONFIG",
    "USER_NS",
];
/// What a kernel of the builder root has neither, since it is for other people's prompts: whatever prints, and
/// devices that it could be printed to.
const FORBIDDEN_IN_RELEASES: [&str; 8] = [
    "EARLY_PRINTK",
    "HVC_DRIVER",
    "MAGIC_SYSRQ",
    "PRINTK",
    "SERIAL_8250",
    "TTY",
    "VIRTIO_CONSOLE",
    "VT",
];
/// What such a kernel always has, named by a fragment or not; a dev kernel does without.
const REQUIRED_IN_RELEASES: &str = "CONFIG_CPU_MITIGATIONS=y\nCONFIG_X86_KERNEL_IBT=y";

/// The configuration is what the fragments ask for, and has nothing that is forbidden.
pub(super) fn check(fragments: &[RecipeFile], config: &str, release: bool) -> Result<(), KernelError> {
    check_wanted(fragments.iter().map(|fragment| fragment.text.as_str()), config)?;
    check_forbidden(&FORBIDDEN, config)?;
    if release {
        check_wanted([REQUIRED_IN_RELEASES], config)?;
        check_forbidden(&FORBIDDEN_IN_RELEASES, config)?;
    }
    Ok(())
}

/// Every line of the fragments has to hold; where two name the same option, the later one.
fn check_wanted<'a>(texts: impl IntoIterator<Item = &'a str>, config: &str) -> Result<(), KernelError> {
    let found: BTreeMap<_, _> = config.lines().filter_map(assignment).collect();
    let lines = texts.into_iter().flat_map(str::lines);
    let wanted: BTreeMap<_, _> = lines.filter_map(assignment).collect();
    let wrong: Vec<_> = wanted
        .into_iter()
        .map(|(option, value)| (option, value, found.get(option).copied().unwrap_or("n")))
        .filter(|(_, value, found)| value != found)
        .map(|(option, value, found)| format!("{option}={value} (found {found})"))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(KernelError::Configuration { wrong })
}

fn check_forbidden(forbidden: &[&str], config: &str) -> Result<(), KernelError> {
    let on = config.lines().filter_map(assignment);
    let found: Vec<_> = on
        .filter(|(option, value)| *value != "n" && forbidden.contains(option))
        .map(|(option, value)| format!("{option}={value}"))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(KernelError::Forbidden { found })
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    line.trim().strip_prefix("CONFIG_")?.split_once('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> RecipeFile {
        RecipeFile {
            name: "test".into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_later_fragment_overrides_and_every_other_line_must_hold() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x,y\"\nCONFIG_D=-1\n";
        let check = |texts: &[&str]| {
            let fragments: Vec<_> = texts.iter().map(|text| fragment(text)).collect();
            check(&fragments, config, false).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["CONFIG_A=n\nCONFIG_B=n", "CONFIG_A=y"]), Ok(()));
        assert_eq!(check(&["# CONFIG_A=n\nCONFIG_C=\"x,y\"\nCONFIG_D=-1"]), Ok(()));
        for text in ["CONFIG_A=n", "CONFIG_B=y", "CONFIG_C=\"x\"", "CONFIG_MISSPELT=y"] {
            let error = check(&[text]).unwrap_err();
            assert!(error.contains(text.trim_start_matches("CONFIG_")), "{error}");
        }
    }

    #[test]
    fn a_fragment_cannot_give_a_guest_what_no_guest_may_have() {
        let check = |config: &str, release| check(&[], config, release).map_err(|error| error.to_string());
        let clean = format!(
            "{REQUIRED_IN_RELEASES}\nCONFIG_NET=y\n# CONFIG_INET is not set\nCONFIG_KEXEC=n\nCONFIG_INET_HELP=y\n"
        );
        assert_eq!(check(&clean, true), Ok(()));
        for option in ["INET=y", "INET=m", "ACPI_PRMT=y"] {
            let error = check(&format!("{clean}CONFIG_{option}\n"), false).unwrap_err();
            assert!(error.ends_with(&format!("must not have: {option}")), "{error}");
        }
        let printing = format!("{clean}CONFIG_PRINTK=y\n");
        assert_eq!(check(&printing, false), Ok(()), "the dev kernel prints");
        let error = check(&printing, true).unwrap_err();
        assert!(error.ends_with("must not have: PRINTK=y"), "{error}");
    }

    #[test]
    fn only_a_dev_kernel_does_without_mitigations() {
        let lacking = REQUIRED_IN_RELEASES.replace("CONFIG_X86_KERNEL_IBT=y", "CONFIG_X86_KERNEL_IBT=n");
        assert!(check(&[], &lacking, false).is_ok());
        for (config, missing) in [(lacking.as_str(), "X86_KERNEL_IBT=y"), ("", "CPU_MITIGATIONS=y")] {
            let error = check(&[], config, true).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
