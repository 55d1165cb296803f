//! Credentials that a process has without anybody having named them: keys in its environment, the identity of its pod,
//! the role of its machine.

use cistern_bucket::{ContainerToken, Credentials};
use secrecy::SecretString;
use url::Url;

use crate::environment::Environment;

/// All of them, the nearest first, as AWS's own tools look for them.
pub fn chain(environment: &Environment, has_endpoint: bool) -> Credentials {
    let chain = keys(environment).into_iter().chain(identity(environment)).collect();
    and_machine(chain, environment, has_endpoint)
}

/// These, and the role of the machine. A store of one's own has no instance metadata of AWS: beside other credentials, asking
/// for it would only delay the answer that credentials are missing.
pub fn and_machine(
    mut chain: Vec<Credentials>,
    environment: &Environment,
    has_endpoint: bool,
) -> Credentials {
    if chain.is_empty() || !has_endpoint {
        chain.extend(machine(environment));
    }
    Credentials::Chain(chain)
}

/// Keys in the environment.
pub fn keys(environment: &Environment) -> Option<Credentials> {
    let env = |name: &str| environment.first(&[name]);
    Some(Credentials::Static {
        access_key_id: env("AWS_ACCESS_KEY_ID")?,
        secret_access_key: env("AWS_SECRET_ACCESS_KEY")?.into(),
        session_token: env("AWS_SESSION_TOKEN").map(SecretString::from),
    })
}

/// Name of a session in which a role is assumed.
pub fn session(environment: &Environment) -> String {
    environment.first(&["AWS_ROLE_SESSION_NAME"]).unwrap_or_else(|| "cistern".to_owned())
}

/// The identity of a pod: a web identity (IRSA), or one that an agent of the node hands out (EKS Pod Identity, ECS).
pub fn identity(environment: &Environment) -> Vec<Credentials> {
    let env = |name: &str| environment.first(&[name]);
    let mut chain = Vec::new();
    if let (Some(role), Some(file)) = (env("AWS_ROLE_ARN"), env("AWS_WEB_IDENTITY_TOKEN_FILE")) {
        chain.push(Credentials::WebIdentity {
            role_arn: role,
            token_file: file.into(),
            session_name: session(environment),
            sts_endpoint: env("AWS_ENDPOINT_URL_STS").and_then(|url| Url::parse(&url).ok()),
        });
    }
    let container = env("AWS_CONTAINER_CREDENTIALS_FULL_URI").or_else(|| {
        env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("http://169.254.170.2{path}"))
    });
    if let Some(uri) = container.and_then(|uri| Url::parse(&uri).ok()) {
        let token_file =
            env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(|f| ContainerToken::File(f.into()));
        let token =
            || env("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(|t| ContainerToken::Value(SecretString::from(t)));
        chain.push(Credentials::Container { uri, authorization: token_file.or_else(token) });
    }
    chain
}

/// The role of the machine, from the metadata of the instance.
fn machine(environment: &Environment) -> Option<Credentials> {
    let env = |name: &str| environment.first(&[name]);
    let disabled = env("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let endpoint = env("AWS_EC2_METADATA_SERVICE_ENDPOINT").and_then(|url| Url::parse(&url).ok());
    (!disabled).then_some(Credentials::InstanceMetadata { endpoint })
}
