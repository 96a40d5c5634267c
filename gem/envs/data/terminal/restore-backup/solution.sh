cd ~
for archive in $(ls backups/*.tar.gz | sort -V -r); do
    if gzip -t "$archive" 2> /dev/null; then
        mkdir -p restored
        tar -xzf "$archive" -C restored
        break
    fi
done
sed -i "s/^port = .*/port = $(cat port.txt)/" restored/settings/service.conf
