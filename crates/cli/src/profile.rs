//! Profiles in `~/.aws/credentials` and `~/.aws/config`, as the AWS tools write them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::environment::Environment;
use crate::failure::Failure;
use crate::sections::parse;

/// The settings of one profile, of both files: the credentials file wins.
#[derive(Default)]
pub struct Profile(BTreeMap<String, String>);

/// Settings that tell where the AWS tools get keys from, and we do not.
const OTHER_SOURCES: [&str; 5] =
    ["credential_process", "sso_session", "sso_start_url", "source_profile", "credential_source"];

/// A profile file larger than this is none.
const MAX_FILE: u64 = 1 << 20;

impl Profile {
    /// The profile called `name`, or the default one. A missing file is no error; a missing profile is one
    /// only if it was asked for by name.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, a profile that is not there.
    pub fn load(name: Option<&str>, environment: &Environment) -> Result<Self, Failure> {
        let aws = |file| environment.home().map(|home| home.join(".aws").join(file));
        let config = environment.path(&["AWS_CONFIG_FILE"]).or_else(|| aws("config"));
        let credentials = environment.path(&["AWS_SHARED_CREDENTIALS_FILE"]).or_else(|| aws("credentials"));
        let wanted = name.unwrap_or("default");
        let mut settings = BTreeMap::new();
        let mut found = false;
        // The config file names its sections `[profile x]`, the credentials file `[x]`.
        for (file, section) in [(config, format!("profile {wanted}")), (credentials, wanted.to_owned())] {
            let Some(text) = file.as_ref().map(read).transpose()?.flatten() else { continue };
            let sections = parse(&text).map_err(|line| {
                let file = file.as_deref().unwrap_or(std::path::Path::new("")).display();
                Failure::invalid(format!("the profile file {file} cannot be parsed: {line}"))
            })?;
            for name in [section.as_str(), wanted] {
                if let Some(values) = sections.get(name) {
                    found = true;
                    settings.extend(values.clone());
                }
            }
        }
        match name {
            Some(name) if !found => Err(Failure::new(
                cistern_bucket::Class::NotFound,
                format!("there is no profile {name} in the AWS configuration"),
            )
            .hint("`aws configure list-profiles` shows what there is; AWS_CONFIG_FILE names another file")),
            _ => Ok(Profile(settings)),
        }
    }

    /// Whether its keys come from where only other tools get them.
    pub fn needs_another_tool(&self) -> bool {
        OTHER_SOURCES.iter().any(|setting| self.get(setting).is_some())
    }

    /// Why a profile that was asked for cannot be used: it holds no keys, or gets them in a way that we do not know.
    pub fn without_credentials(&self, name: &str) -> Failure {
        match OTHER_SOURCES.iter().find(|setting| self.get(setting).is_some()) {
            Some(setting) => Failure::invalid(format!("the profile {name} uses {setting}, which is not supported"))
                .hint(format!(
                    "let the AWS tools resolve it: eval \"$(aws configure export-credentials --profile {name} --format env)\""
                )),
            None => Failure::invalid(format!("the profile {name} holds no credentials"))
                .hint("it needs aws_access_key_id and aws_secret_access_key, or role_arn and web_identity_token_file"),
        }
    }

    /// A setting such as `region`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

fn read(file: &PathBuf) -> Result<Option<String>, Failure> {
    use std::io::Read;
    let mut text = String::new();
    match std::fs::File::open(file).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io(format!("reading the profile file {}", file.display()), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_comes_from_both_files_and_the_credentials_win() {
        let home = tempfile::tempdir().unwrap();
        let aws = home.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        std::fs::write(
            aws.join("config"),
            "[default]\nregion = eu-north-1\n[profile work]\nregion=us-east-2\naws_access_key_id = old\ns3 =\n  addressing_style = path\n",
        )
        .unwrap();
        std::fs::write(
            aws.join("credentials"),
            "[work]\naws_access_key_id = AK\naws_secret_access_key = a=b#c\\d\n",
        )
        .unwrap();
        let environment = Environment::from([("HOME", home.path().to_str().unwrap())]);
        let work = Profile::load(Some("work"), &environment).unwrap();
        assert_eq!(work.get("region"), Some("us-east-2"));
        assert_eq!(work.get("aws_access_key_id"), Some("AK"));
        assert_eq!(work.get("aws_secret_access_key"), Some("a=b#c\\d"));
        assert_eq!(Profile::load(None, &environment).unwrap().get("region"), Some("eu-north-1"));
        assert_eq!(Profile::load(Some("none"), &environment).err().unwrap().code, 20);
    }
}
