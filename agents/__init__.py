"""The service: the only place that knows Faust, Kafka clients and HTTP. No arithmetic on business numbers."""
