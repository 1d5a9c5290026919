"""The paper's training job: ResNet by large-minibatch SGD over `allreduce`."""
