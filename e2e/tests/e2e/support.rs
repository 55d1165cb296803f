//! Manifests that tests share.

use cistern_e2e::Cluster;

/// A Secret for the storage, one with the password, and the storage itself.
pub fn storage(cluster: &Cluster, name: &str, bucket: &str, prefix: &str) -> String {
    let keys = cluster.credentials();
    format!(
        r#"
apiVersion: v1
kind: Secret
metadata: {{ name: {name}-secret }}
stringData: {{ AWS_ACCESS_KEY_ID: "{id}", AWS_SECRET_ACCESS_KEY: "{secret}" }}
---
apiVersion: v1
kind: Secret
metadata: {{ name: encrypt-secret }}
stringData: {{ RESTIC_PASSWORD: changeit }}
---
apiVersion: storage.kubestash.com/v1alpha1
kind: BackupStorage
metadata: {{ name: {name} }}
spec:
  storage:
    provider: s3
    s3:
      endpoint: {endpoint}
      bucket: {bucket}
      prefix: {prefix}
      region: {region}
      secretName: {name}-secret
  deletionPolicy: Delete
"#,
        id = keys.access_key,
        secret = keys.secret_key,
        endpoint = cluster.s3_endpoint,
        region = keys.region,
    )
}

/// A volume and a claim that mount a bucket through the CSI driver. Volumes have no namespace: their names must differ.
pub fn volume(volume: &str, namespace: &str, claim: &str, bucket: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{ name: {volume} }}
spec:
  storageClassName: csi-s3
  capacity: {{ storage: 10Gi }}
  accessModes: [ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {{ namespace: {namespace}, name: {claim} }}
  csi:
    driver: ru.yandex.s3.csi
    volumeHandle: {bucket}
    nodePublishSecretRef: {{ namespace: csi-s3, name: csi-s3-secret }}
    nodeStageSecretRef: {{ namespace: csi-s3, name: csi-s3-secret }}
    volumeAttributes:
      capacity: 10Gi
      mounter: geesefs
      options: --memory-limit 1000 --dir-mode 0777 --file-mode 0666 --no-systemd
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: {claim} }}
spec:
  storageClassName: csi-s3
  accessModes: [ReadWriteMany]
  resources: {{ requests: {{ storage: 10Gi }} }}
"#
    )
}

/// A volume and a claim of a plain folder of the node.
pub fn folder(volume: &str, namespace: &str, claim: &str, path: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{ name: {volume} }}
spec:
  storageClassName: manual
  capacity: {{ storage: 10Gi }}
  accessModes: [ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {{ namespace: {namespace}, name: {claim} }}
  hostPath: {{ path: {path}, type: DirectoryOrCreate }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: {claim} }}
spec:
  storageClassName: manual
  accessModes: [ReadWriteMany]
  resources: {{ requests: {{ storage: 10Gi }} }}
"#
    )
}

/// A policy, and a configuration that backs the claim up into the repositories, all on one storage.
pub fn configuration(
    name: &str,
    claim: &str,
    storage: &str,
    schedule: &str,
    repositories: &[&str],
) -> String {
    let list: String = repositories
        .iter()
        .map(|repository| {
            format!(
                "        - {{ name: {repository}, backend: main, directory: /{repository}, \
                 encryptionSecret: {{ name: encrypt-secret }}, deletionPolicy: Retain }}\n"
            )
        })
        .collect();
    format!(
        r#"
apiVersion: storage.kubestash.com/v1alpha1
kind: RetentionPolicy
metadata: {{ name: demo-retention }}
spec:
  maxRetentionPeriod: 2mo
  successfulSnapshots: {{ last: 2 }}
  failedSnapshots: {{ last: 2 }}
---
apiVersion: core.kubestash.com/v1alpha1
kind: BackupConfiguration
metadata: {{ name: {name} }}
spec:
  target: {{ apiGroup: "", kind: PersistentVolumeClaim, name: {claim} }}
  backends:
    - name: main
      storageRef: {{ name: {storage} }}
      retentionPolicy: {{ name: demo-retention }}
  sessions:
    - name: frequent-backup
      sessionHistoryLimit: 3
      scheduler:
        schedule: "{schedule}"
        jobTemplate: {{ backoffLimit: 1 }}
      repositories:
{list}
      addon:
        name: pvc-addon
        tasks: [{{ name: logical-backup }}]
"#
    )
}

/// Restores the newest snapshot of a repository into a claim.
pub fn restore(name: &str, claim: &str, repository: &str) -> String {
    format!(
        r#"
apiVersion: core.kubestash.com/v1alpha1
kind: RestoreSession
metadata: {{ name: {name} }}
spec:
  target: {{ apiGroup: "", kind: PersistentVolumeClaim, name: {claim} }}
  dataSource:
    repository: {repository}
    snapshot: latest
    encryptionSecret: {{ name: encrypt-secret }}
  addon:
    name: pvc-addon
    tasks: [{{ name: logical-backup-restore }}]
"#
    )
}
