FROM a
ADD a.tar /
ADD --chown=1 --chmod=u+x a b
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d http://127.0.0.1/a /a
ADD --keep-git-dir=true http://127.0.0.1/a.git /b
ADD --keep-git-dir http://127.0.0.1/a.git /b
ADD --unpack=true a.tar /x
ADD --link --exclude=x a b
ADD ["a", "b"]
