"""The pages under `/admin`: what auditors and admins see of the log, and change."""
